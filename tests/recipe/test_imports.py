import subprocess
import sys

PROGRAM = """
import sys
import restrain.recipe
restrain.recipe.load("imagenet_resnet152", ["optimizer.lr=0.2"])
heavy = {"torch", "lightning", "torchvision", "timm", "numpy", "wandb", "rich"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_recipes_need_no_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
