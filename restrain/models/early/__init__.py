"""Skip connections before ResNets: perceptron, LSTM, highway."""
