"use strict";
(() => {
  const { charts, maps, runs } = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const chosen = (selector) => [...document.querySelectorAll(selector)].filter((box) => box.checked).map((box) => box.value);
  const places = charts.map((chart) => by(`chart-${chart.id}`));
  const EVENT_MARKS = { resume: "▲", intervention: "◆", skip: "✕", tripwire: "■" };
  const CROPPED = ["loss", "grad_norm"]; // metrics that may leap far outside for a step
  const MOST_MARKS = 60; // of one run; the list below the charts has all of them

  // The value of another axis at given steps: exact at those that the page knows, in between on a straight line.
  function along(run, axis, steps) {
    if (axis === "step") return steps;
    const known = run.axes.step, values = run.axes[axis];
    let i = 0;
    return steps.map((step) => {
      while (i < known.length - 2 && known[i + 1] <= step) i++;
      while (i > 0 && known[i] > step) i--;
      if (known.length < 2 || step <= known[i]) return values[i];
      const share = Math.min(1, (step - known[i]) / (known[i + 1] - known[i]));
      return values[i] + share * (values[i + 1] - values[i]);
    });
  }

  // Exponential moving average, corrected for its start, so that it begins at the first value.
  function smooth(values, weight) {
    let sum = 0, total = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = weight * sum + (1 - weight) * value;
      total = weight * total + (1 - weight);
      return sum / total;
    });
  }

  const rgba = (hex, alpha) => `rgba(${[1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)).join(",")},${alpha})`;

  function traces(chart, state) {
    const found = [];
    for (const number of state.runs) {
      const run = runs[number];
      for (const name of chart.metrics) {
        const series = run.series[name];
        if (!series) continue;
        const steps = run.grids[series.grid], x = along(run, state.axis, steps);
        const evaluation = name.startsWith("eval/");
        const label = chart.metrics.length > 1 ? `${run.name} ${name}` : run.name;
        const plain = { x, hoverinfo: "skip", showlegend: false, type: "scatter" };
        if (series.low && state.range) {
          const edge = { ...plain, mode: "lines", line: { width: 0 } };
          found.push({ ...edge, y: series.low }, { ...edge, y: series.high, fill: "tonexty", fillcolor: rgba(run.colour, 0.15) });
        }
        const smoothed = state.smoothing > 0 && !evaluation && name !== "train/lr";
        if (smoothed) found.push({ ...plain, y: series.mean, mode: "lines", line: { color: rgba(run.colour, 0.3), width: 1 } });
        const second = name === "eval/top5";
        found.push({
          x, y: smoothed ? smooth(series.mean, state.smoothing) : series.mean, customdata: steps, name: label, type: "scatter", showlegend: false,
          mode: evaluation ? "lines+markers" : steps.length === 1 ? "markers" : "lines",
          line: { color: run.colour, width: evaluation ? 1 : 1.5, dash: second ? "dot" : "solid" },
          marker: { size: 5, color: run.colour, symbol: second ? "circle-open" : "circle" },
          hovertemplate: "%{y:.5~g}  %{fullData.name}<extra></extra>", hoverlabel: { bordercolor: run.colour },
        });
      }
    }
    return found;
  }

  // A few values far outside would flatten all others: [low, high] without them, and how many lie above; null: all fit.
  function crop(found, log) {
    const all = found.flatMap((trace) => (trace.hoverinfo === "skip" ? [] : trace.y.filter((y) => y !== null && (!log || y > 0)))).sort((a, b) => a - b);
    if (all.length < 20 || log) return null;
    const low = all[0], usual = all[Math.floor(0.97 * (all.length - 1))], top = all[all.length - 1];
    const high = usual + 0.25 * (usual - low);
    if (top - low <= 4 * (usual - low) || usual === low) return null;
    return { range: [low - 0.05 * (high - low), high], above: all.filter((y) => y > high).length };
  }

  function marks(state) {
    const shapes = [], annotations = [];
    if (!state.events) return { shapes, annotations };
    for (const number of state.runs) {
      const run = runs[number], events = run.events.slice(0, MOST_MARKS);
      along(run, state.axis, events.map((event) => event.step)).forEach((x, i) => {
        const event = events[i];
        shapes.push({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: run.colour, width: 1, dash: "dot" } });
        annotations.push({
          xref: "x", yref: "paper", x: state.logx ? Math.log10(Math.max(x, 1e-9)) : x, y: 1, yanchor: "bottom", showarrow: false,
          text: EVENT_MARKS[event.kind], font: { color: run.colour, size: 11 }, hovertext: `${run.name}, step ${event.step}, ${event.kind}: ${event.text}`,
        });
      });
    }
    return { shapes, annotations };
  }

  function state() {
    return {
      runs: chosen("input.run").map(Number), axis: by("axis").value, smoothing: Number(by("smoothing").value), logx: by("logx").checked,
      logy: chosen("input.logy"), range: by("range").checked, events: by("events").checked,
    };
  }

  function layout(chart, now, found) {
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    const log = now.logy.includes(chart.id), cropped = CROPPED.includes(chart.id) ? crop(found, log) : null;
    document.querySelector(`[data-note="${chart.id}"]`).textContent = cropped ? `${cropped.above} value(s) above, double-click shows them` : "";
    const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true };
    return {
      ...marks(now), margin: { l: 52, r: 10, t: 16, b: 36 }, hovermode: "x", dragmode: "zoom", uirevision: `${now.axis} ${now.logx} ${log}`,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 }, hoverlabel: { namelength: 40, bgcolor: colour("--panel"), font: { size: 11, color: colour("--ink") } },
      xaxis: { ...axis, title: { text: by("axis").selectedOptions[0].text, standoff: 4 }, type: now.logx ? "log" : "linear", showspikes: true,
        spikemode: "across", spikesnap: "hovered data", spikethickness: -1, spikedash: "solid", spikecolor: colour("--faint") },
      yaxis: { ...axis, title: { text: chart.unit, standoff: 4 }, type: log ? "log" : "linear", ...(cropped ? { range: cropped.range, autorange: false } : { autorange: true }),
        tickformat: chart.id === "wait" ? ".0%" : undefined, rangemode: chart.id === "wait" || chart.id === "throughput" ? "tozero" : "normal" },
    };
  }

  // Depth over time: what a probe read at each join (y) and step (x), with one scale for all runs.
  function drawMap(quantity) {
    const value = quantity.log ? (v) => (v > 0 ? Math.log10(v) : null) : (v) => v;
    const of = (run) => (run.maps && run.maps.values[quantity.name] ? run.maps.values[quantity.name].map((row) => row.map((v) => (v === null ? null : value(v)))) : null);
    const found = runs.map(of), all = found.flatMap((z) => (z || []).flat()).filter((v) => v !== null);
    let low = all.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    if (quantity.signed) [low, high] = [-1, 1].map((side) => side * (Math.max(Math.abs(low), Math.abs(high)) || 1));
    const ticks = [0, 1, 2, 3, 4].map((n) => low + (n / 4) * (high - low)), shown = ticks.map((v) => (quantity.log ? 10 ** v : v).toPrecision(2));
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    return found.flatMap((z, n) => {
      if (!z) return [];
      const { steps, joins } = runs[n].maps;
      const trace = {
        z, x: steps, y: joins, customdata: runs[n].maps.values[quantity.name], type: "heatmap", zmin: low, zmax: high, colorscale: quantity.signed ? "RdBu" : "Viridis",
        hovertemplate: "%{customdata:.4~g}<br>%{y}, step %{x}<extra></extra>", hoverongaps: false,
        colorbar: { thickness: 10, outlinewidth: 0, tickvals: ticks, ticktext: shown.map((v) => String(Number(v))) },
      };
      const axis = { linecolor: colour("--line"), gridcolor: colour("--line"), automargin: true };
      return Plotly.react(by(`map-${quantity.name}-${n}`), [trace], {
        margin: { l: 52, r: 10, t: 16, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--ink"), size: 12 },
        xaxis: { ...axis, title: { text: "step", standoff: 4 } }, yaxis: { ...axis, type: "category" },
      }, { responsive: true, displaylogo: false });
    });
  }

  function draw() {
    const now = state();
    by("smoothed").textContent = now.smoothing ? now.smoothing.toFixed(2) : "off";
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d"] };
    return Promise.all(charts.map((chart, i) => {
      const found = traces(chart, now);
      return Plotly.react(places[i], found, layout(chart, now, found), config);
    }));
  }

  // One cursor: where the mouse is in a chart, the others show their values too.
  let following = false;
  function follow(place) {
    place.on("plotly_hover", (event) => {
      if (following) return;
      following = true;
      const x = event.points[0].x;
      for (const other of places) if (other !== place) point(other, x);
      following = false;
    });
    place.on("plotly_unhover", () => {
      for (const other of places) if (other !== place) Plotly.Fx.unhover(other);
    });
    place.on("plotly_relayout", (change) => {
      if (following) return;
      const update = {};
      if ("xaxis.range[0]" in change) update["xaxis.range"] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
      else if (change["xaxis.autorange"]) update["xaxis.autorange"] = true;
      else return;
      following = true;
      Promise.all(places.filter((other) => other !== place).map((other) => Plotly.relayout(other, { ...update }))).finally(() => { following = false; });
    });
  }

  // The nearest point of each curve of a chart that reaches as far.
  function point(place, x) {
    const points = [];
    place.data.forEach((trace, curve) => {
      if (trace.hoverinfo === "skip" || !trace.x.length) return;
      let low = 0, high = trace.x.length - 1;
      if (x < trace.x[0] || x > trace.x[high]) return; // the run is not there
      while (high - low > 1) {
        const middle = (low + high) >> 1;
        if (trace.x[middle] <= x) low = middle; else high = middle;
      }
      points.push({ curveNumber: curve, pointNumber: Math.abs(trace.x[low] - x) <= Math.abs(trace.x[high] - x) ? low : high });
    });
    if (points.length) Plotly.Fx.hover(place, points);
    else Plotly.Fx.unhover(place);
  }

  const THEMES = ["system", "light", "dark"];
  by("theme").addEventListener("click", (event) => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme || "system") + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    event.target.textContent = `theme: ${next}`;
    drawAll();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll());

  const spans = runs.flatMap((run) => Object.values(run.series).map((series) => series.span));
  const span = Math.max(1, ...spans);
  by("span").textContent = span > 1 ? `A point is the mean of up to ${span} steps, the shade around it their range.` : "";
  by("range").parentElement.hidden = span === 1;
  by("events").parentElement.hidden = !runs.some((run) => run.events.length);
  for (const control of document.querySelectorAll("#curves input, #curves select")) control.addEventListener("input", draw);
  const drawAll = () => Promise.all([draw(), ...maps.flatMap(drawMap)]);
  drawAll().then(() => {
    places.forEach(follow);
    document.documentElement.dataset.drawn = String(places.length);
  });
})();
