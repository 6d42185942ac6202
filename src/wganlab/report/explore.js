// Curves to explore: Plotly draws what explore.py wrote. Without DecompressionStream the figures below stay as they are.
const shown = JSON.parse(document.getElementById("curves-data").textContent);
const explorer = document.getElementById("explore"), chart = document.getElementById("chart");
const chosen = (name) => explorer.querySelector(`[name=${name}]`);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Plotly takes names for markup
const plain = (name) => String(name).replace(/&/g, "&amp;").replace(/</g, "&lt;");

// exponential moving average, without the bias of its first values, as W&B's
function smooth(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + 1 - weight;
    return sum / mass;
  });
}

function line(arm, name, x, y, thin, first) {
  return { x, y, name: plain(arm), text: plain(name), legendgroup: arm, showlegend: first, mode: y.length > 1 ? "lines" : "markers",
    line: { color: shown.colours[arm], width: thin ? 1 : 2 }, opacity: thin ? 0.7 : 1,
    hovertemplate: "%{text}<br>%{x}: %{y:.4g}<extra></extra>" };
}

function traces(column, bySeconds, weight, every) {
  const found = [];
  for (const [arm, colour] of Object.entries(shown.colours)) {
    const band = shown.bands[column][arm];
    if (band && !every && !bySeconds) {
      const [steps, mean, low, high] = band, ends = [smooth(low, weight), smooth(high, weight).reverse()];
      found.push({ x: [...steps, ...[...steps].reverse()], y: ends.flat(), fill: "toself", fillcolor: colour + "33", mode: "lines",
        line: { width: 0 }, legendgroup: arm, showlegend: false, hoverinfo: "skip" });
      found.push(line(arm, `${arm}, mean`, steps, smooth(mean, weight), false, true));
      continue;
    }
    const runs = shown.runs.filter((run) => run.arm === arm && run.curves[column]);
    runs.forEach((run, i) => {
      const [steps, seconds, values] = run.curves[column];
      found.push(line(arm, `${arm}, seed ${run.seed}`, bySeconds ? seconds : steps, smooth(values, weight), runs.length > 1, i === 0));
    });
  }
  return found;
}

const look = () => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: style("--text"), family: "system-ui, sans-serif" },
  margin: { t: 34, r: 10, b: 45, l: 60 }, legend: { orientation: "h", y: -0.18 },
});
const axis = () => ({ gridcolor: style("--line"), zerolinecolor: style("--line") });

function draw() {
  const column = chosen("column").value, bySeconds = chosen("x").value === "seconds";
  const y = { ...axis(), type: chosen("log").checked ? "log" : "linear", title: { text: plain(shown.columns[column]) } };
  const x = { ...axis(), title: { text: bySeconds ? "seconds of training" : "generator steps" } };
  const found = traces(column, bySeconds, Number(chosen("smooth").value), chosen("every")?.checked);
  Plotly.react(chart, found, { ...look(), xaxis: x, yaxis: y, hovermode: "closest", uirevision: column }, { responsive: true, displaylogo: false });
  chart.setAttribute("aria-label", `${shown.columns[column]} of ${Object.keys(shown.colours).join(", ")}`);
}

function drawSweep() {
  const { score, values, keys } = shown.sweep;
  const dimension = ([key, column]) => {
    const label = plain(key);
    if (typeof column[0] === "number") {
      const positive = Math.min(...column) > 0 && Math.max(...column) > 30 * Math.min(...column);
      return positive ? { label: `log10 ${label}`, values: column.map(Math.log10) } : { label, values: column };
    }
    const names = [...new Set(column)];
    const tickvals = names.map((_, i) => i), ticktext = names.map(plain);
    return { label, values: column.map((name) => names.indexOf(name)), tickvals, ticktext };
  };
  const dimensions = [...Object.entries(keys).map(dimension), { label: score, values }];
  const trace = { type: "parcoords", dimensions, line: { color: values, colorscale: "Viridis", showscale: true } };
  Plotly.react("sweep", [trace], { ...look(), margin: { t: 60, r: 60, b: 20, l: 60 } }, { responsive: true, displaylogo: false });
}

async function load() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  explorer.hidden = false;
  document.body.classList.add("explored");
  const all = () => { draw(); if (shown.sweep) drawSweep(); };
  explorer.querySelectorAll("select, input").forEach((control) => control.addEventListener("input", draw));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  all();
}

if ("DecompressionStream" in window) load();
