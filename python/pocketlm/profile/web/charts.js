"use strict";
// The charts, by plotly: bars by layer, a treemap, the roofline, and bits against speed and loss.
const charts = (() => {
  const box = document.getElementById("chart");
  const PALETTE = ["#c2410c", "#0e7490", "#7c3aed", "#15803d", "#b45309", "#be185d", "#4d7c0f", "#1d4ed8", "#64748b", "#a16207"];
  // Of Okabe and Ito, who see few colours tell them apart; each kind has a shape as well.
  const KINDS = {
    p2: ["#cc79a7", "triangle-down"], p2v: ["#d55e00", "triangle-up"], p3: ["#e69f00", "square"], p4: ["#009e73", "circle"], p8: ["#0072b2", "diamond"],
    bf16: ["#7f7f7f", "pentagon"], f16: ["#7f7f7f", "hexagon"], f32: ["#7f7f7f", "octagon"], attention: ["#56b4e9", "cross"],
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const cost = (row) => row[report.state.step];
  const amount = (row) => (report.state.measure === "time" ? cost(row).seconds : cost(row).bytes);
  const written = (value) => (report.state.measure === "time" ? show.seconds(value) : show.bytes(Math.round(value)));
  // Sites within a layer that are small go together.
  const group = (row) => (row.op === "linear" || row.op === "attention" ? row.site : "other");
  const place = (row) => (row.layer === null ? row.site : `layer ${row.layer}`);

  function layout(extra) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
    return {
      margin: { l: 54, r: 14, t: 12, b: 40 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: css("--ink") },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
      ...extra, xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
    };
  }

  function draw(traces, extra, pick) {
    Plotly.react(box, traces, layout(extra), { displayModeBar: false, responsive: true });
    box.removeAllListeners?.("plotly_click");
    box.on("plotly_click", (event) => {
      const names = pick(event.points[0]);
      const keys = event.event || {};
      if (names && names.length) report.choose(names, keys.ctrlKey || keys.shiftKey || keys.metaKey);
    });
  }

  // Of bars, each of some rows: those with selected ones are outlined, and the others fade.
  function marks(bars) {
    const { chosen } = report.state;
    const selected = bars.map((rows) => rows.some((row) => chosen.has(row.name)));
    return { opacity: selected.map((is) => (is || !chosen.size ? 1 : 0.35)), line: { color: css("--ink"), width: selected.map((is) => (is ? 2 : 0)) } };
  }

  function bars() {
    const places = [...new Set(report.rows.map(place))].filter((name) => report.rows.some((row) => place(row) === name && amount(row)));
    const groups = [...new Set(report.rows.filter((row) => amount(row)).map(group))];
    const members = (name, where) => report.rows.filter((row) => group(row) === name && place(row) === where);
    const scale = report.state.measure === "time" ? 1e6 : 1e-6;
    const traces = groups.map((name, at) => {
      const values = places.map((where) => members(name, where).reduce((sum, row) => sum + amount(row), 0));
      return {
        type: "bar", name: show.plain(name), x: places.map(show.plain), y: values.map((value) => value * scale),
        text: values.map(written), textposition: "none", hovertemplate: "%{x}<br>%{fullData.name}: %{text}<extra></extra>",
        marker: { color: PALETTE[at % PALETTE.length], ...marks(places.map((where) => members(name, where))) },
        customdata: places.map((where) => members(name, where).map((row) => row.name)),
      };
    });
    draw(traces, {
      barmode: "stack", legend: { orientation: "h", y: 1.12, x: 0 }, margin: { l: 54, r: 14, t: 34, b: 40 },
      yaxis: { title: { text: report.state.measure === "time" ? "µs" : "MB" } },
    }, (point) => point.data.customdata[point.pointNumber]);
  }

  function treemap() {
    const ids = ["all"], labels = ["step"], parents = [""], values = [0], names = [report.rows.map((row) => row.name)];
    const seen = new Map();
    for (const row of report.rows) {
      if (!amount(row)) continue;
      const where = place(row);
      if (!seen.has(where)) {
        seen.set(where, ids.length);
        ids.push("at " + where); labels.push(where); parents.push("all"); values.push(0); names.push([]);
      }
      const at = seen.get(where);
      ids.push("op " + row.name); labels.push(row.site); parents.push("at " + where); values.push(amount(row)); names.push([row.name]);
      values[at] += amount(row); values[0] += amount(row); names[at].push(row.name);
    }
    // A layer is outlined when all of it is selected; what is around everything is not.
    const outlined = names.map((some, at) => at > 0 && some.every((name) => report.state.chosen.has(name)));
    draw([{
      type: "treemap", branchvalues: "total", ids: ids.map(show.plain), labels: labels.map(show.plain), parents: parents.map(show.plain), values,
      text: values.map(written), customdata: names, texttemplate: "%{label}<br>%{text}", hovertemplate: "%{label}<br>%{text}, %{percentRoot:.1%}<extra></extra>",
      marker: {
        colors: values.map((value, at) => (parents[at].startsWith("at") ? value / values[0] : 0)), colorscale: [[0, css("--low")], [1, css("--high")]],
        line: { width: 2, color: outlined.map((is) => css(is ? "--ink" : "--panel")) }, // of several widths plotly loses the path bar
      },
      uirevision: `${report.state.step} ${report.state.measure}`, // to mark a selection does not zoom out
      pathbar: { visible: true }, tiling: { pad: 2 },
    }], { uniformtext: { minsize: 9, mode: "hide" }, margin: { l: 6, r: 6, t: 26, b: 6 } }, (point) => point.customdata);
  }

  function roofline() {
    const rows = report.rows.filter((row) => cost(row).bytes && cost(row).macs && cost(row).seconds);
    const { read_bandwidth: memory, int8_peak: peak } = report.data.machine;
    const intensity = (row) => cost(row).macs / cost(row).bytes;
    const low = Math.min(0.25, ...rows.map(intensity)) / 2, high = Math.max((4 * peak) / memory, ...rows.map(intensity)) * 2;
    const xs = [low, peak / memory, high];
    const order = (kind) => (kind in KINDS ? Object.keys(KINDS).indexOf(kind) : Infinity);
    const kinds = [...new Set(rows.map((row) => row.kind || row.op))].sort((a, b) => (order(a) < order(b) ? -1 : 1));
    const above = rows.some((row) => cost(row).roof_seconds > cost(row).seconds);
    const traces = kinds.map((kind) => {
      const [color, symbol] = KINDS[kind] || ["#7f7f7f", "star"];
      const group = rows.filter((row) => (row.kind || row.op) === kind);
      return {
        type: "scatter", mode: "markers", name: show.plain(kind), x: group.map(intensity), y: group.map((row) => cost(row).macs / cost(row).seconds / 1e9),
        text: group.map((row) => show.plain(`${row.name}: ${show.seconds(cost(row).seconds)}`)), customdata: group.map((row) => row.name),
        hovertemplate: "%{text}<br>%{x:.3~g} MAC/B, %{y:.3~g} GMAC/s<extra></extra>",
        marker: {
          size: group.map((row) => 7 + 26 * Math.sqrt(cost(row).share)), color, symbol, opacity: 0.8,
          line: { width: group.map((row) => (report.state.chosen.has(row.name) ? 3 : 0.5)), color: css("--ink") },
        },
      };
    });
    traces.push({
      type: "scatter", mode: "lines", name: "roof", x: xs, y: xs.map((x) => Math.min(x * memory, peak) / 1e9), hoverinfo: "skip",
      line: { color: css("--muted"), width: 2 }, showlegend: false,
    });
    draw(traces, {
      xaxis: { type: "log", title: { text: "multiply-adds per byte read" }, exponentformat: "none", dtick: 1 },
      yaxis: { type: "log", title: { text: "GMAC/s" }, exponentformat: "none", dtick: 1 },
      legend: { orientation: "h", y: 1.1, x: 0, itemsizing: "constant" },
      annotations: [
        ...(above ? [{ xref: "paper", yref: "paper", x: 1, y: 0, text: "above the line: the processor's caches hold the data, not the memory", showarrow: false, xanchor: "right", yanchor: "bottom", font: { color: css("--muted") } }] : []),
        { x: Math.log10(low * 1.3), y: Math.log10((low * 1.3 * memory) / 1e9), text: `memory ${show.number(memory / 1e9)} GB/s`, showarrow: false, xanchor: "left", yanchor: "top", yshift: -8, xshift: 12, font: { color: css("--muted") } },
        { x: Math.log10(high / 1.05), y: Math.log10(peak / 1e9), text: `int8 ${show.number(peak / 1e9)} GMAC/s`, showarrow: false, xanchor: "right", yanchor: "bottom", font: { color: css("--muted") } },
      ],
    }, (point) => (point.data.customdata ? [point.data.customdata[point.pointNumber]] : null));
  }

  // Recipes that change one group of sites to one kind, and all of them.
  function recipes() {
    const sites = [...new Set(report.rows.filter((row) => report.matrixOf.has(row.name) && row.op === "linear").map((row) => row.site))];
    const groups = [["all projections", (matrix) => matrix.projection], ...sites.map((site) => [site, (matrix) => matrix.ops.some((op) => report.byName.get(op).site === site)])];
    const found = [];
    for (const [name, fits] of groups) {
      for (const kind of report.data.kinds) {
        if (kind === "keep") continue;
        const recipe = report.current();
        for (const matrix of report.data.matrices) if (fits(matrix)) recipe.set(matrix.name, kind);
        found.push({ name: `${name}: ${kind}`, all: name === "all projections", kind, recipe, ...report.predict(recipe) });
      }
    }
    return found;
  }

  function tradeoff() {
    const found = recipes();
    const loss = found.some((point) => point.kl !== null);
    const speed = report.state.step === "decode" ? "decode" : "prefill";
    const hover = (point) => show.plain(`${point.name}: ${show.number(point[speed])} tokens/s, ${show.bytes(point.bytes)}` + (point.kl === null ? ", loss unknown" : `, KL ${point.kl.toPrecision(3)}`));
    const known = found.map((point) => point.kl).filter((kl) => kl !== null);
    const scale = (points) => (loss ? { color: points.map((point) => point.kl), colorscale: "Viridis", cmin: 0, cmax: Math.max(1e-9, ...known), reversescale: true } : { color: css("--muted") });
    const trace = (name, points, extra) => ({
      type: "scatter", mode: "markers", name, x: points.map((point) => point.bitsAll), y: points.map((point) => point[speed]), customdata: points,
      text: points.map(hover), hovertemplate: "%{text}<br>%{x:.2f} bits<extra></extra>", ...extra,
    });
    // A loss that is not known has no colour of the scale: least of all that of none.
    const told = (point) => !loss || point.kl !== null;
    const site = found.filter((point) => !point.all), whole = found.filter((point) => point.all);
    const unknown = found.filter((point) => !told(point));
    const now = { name: "now", ...report.predict(report.current()) };
    const then = { name: "what if", ...report.predict(report.state.recipe) };
    const beside = { p2: "middle left", p2v: "middle right" }; // they are about as large and as fast
    const traces = [
      trace("one site changed", site.filter(told), { marker: { size: 8, opacity: 0.75, ...scale(site.filter(told)) } }),
      // The line goes through all of them, whether the loss is known or not.
      trace("", whole, { mode: "lines+markers+text", showlegend: false, hoverinfo: "skip", hovertemplate: null, marker: { size: 13, opacity: 0 }, cliponaxis: false, line: { color: css("--line") }, texttemplate: whole.map((point) => point.kind), textposition: whole.map((point) => beside[point.kind] || "top center") }),
      trace("all projections", whole.filter(told), { marker: { size: 13, symbol: "square", ...scale(whole.filter(told)), ...(loss ? { showscale: true, colorbar: { title: { text: "KL, nats/token" }, thickness: 10 } } : { color: "#0e7490" }) } }),
      ...(unknown.length ? [trace("loss unknown", unknown, { marker: { size: unknown.map((point) => (point.all ? 13 : 8)), symbol: unknown.map((point) => (point.all ? "square-x-open" : "x-thin-open")), color: css("--muted"), line: { width: 1.5 } } })] : []),
      trace("now", [now], { marker: { size: 16, symbol: "circle-open", color: css("--ink"), line: { width: 3 } } }),
      trace("what if", [then], { marker: { size: 15, symbol: "star", color: css("--accent"), line: { width: 1, color: css("--panel") } } }),
    ];
    draw(traces, {
      xaxis: { title: { text: "bits per weight, everything counted" } },
      yaxis: { title: { text: `${speed} tokens/s` }, rangemode: "normal" },
      legend: { orientation: "h", y: 1.12, x: 0 }, margin: { l: 60, r: 14, t: 34, b: 40 },
    }, (point) => {
      const chosen = point.data.customdata[point.pointNumber];
      if (chosen.recipe) {
        report.state.recipe = chosen.recipe;
        report.set("recipe", chosen.recipe);
      }
      return null;
    });
  }

  const kinds = { bars, treemap, roofline, tradeoff };
  // A click into the treemap also zooms: it is drawn anew when that is over.
  const settled = () => (box._transitioning ? setTimeout(settled, 50) : report.state.tab === "treemap" && treemap());
  report.listen((what) => {
    const tab = report.state.tab;
    if (!(tab in kinds)) return;
    if (what === "chosen" && tab === "treemap") setTimeout(settled);
    else if (what === "chosen" ? tab !== "tradeoff" : what === "recipe" ? tab === "tradeoff" : true) kinds[tab]();
  });
  return {};
})();
