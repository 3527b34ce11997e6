"use strict";
// The charts, by plotly: bars by layer, a treemap, the roofline, and bits against speed and loss.
const charts = (() => {
  const box = document.getElementById("chart");
  const PALETTE = ["#c2410c", "#0e7490", "#7c3aed", "#15803d", "#b45309", "#be185d", "#4d7c0f", "#1d4ed8", "#64748b", "#a16207"];
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
        marker: { color: PALETTE[at % PALETTE.length] }, customdata: places.map((where) => members(name, where).map((row) => row.name)),
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
    draw([{
      type: "treemap", branchvalues: "total", ids: ids.map(show.plain), labels: labels.map(show.plain), parents: parents.map(show.plain), values,
      text: values.map(written), customdata: names, texttemplate: "%{label}<br>%{text}", hovertemplate: "%{label}<br>%{text}, %{percentRoot:.1%}<extra></extra>",
      marker: { colors: values.map((value, at) => (parents[at].startsWith("at") ? value / values[0] : 0)), colorscale: [[0, css("--low")], [1, css("--high")]], line: { width: 1, color: css("--panel") } },
      pathbar: { visible: true }, tiling: { pad: 2 },
    }], { uniformtext: { minsize: 9, mode: "hide" }, margin: { l: 6, r: 6, t: 6, b: 6 } }, (point) => point.customdata);
  }

  function roofline() {
    const rows = report.rows.filter((row) => cost(row).bytes && cost(row).macs && cost(row).seconds);
    const { read_bandwidth: memory, int8_peak: peak } = report.data.machine;
    const intensity = (row) => cost(row).macs / cost(row).bytes;
    const low = Math.min(0.25, ...rows.map(intensity)) / 2, high = Math.max((4 * peak) / memory, ...rows.map(intensity)) * 2;
    const xs = [low, peak / memory, high];
    const kinds = [...new Set(rows.map((row) => row.kind || row.op))];
    const traces = kinds.map((kind, at) => {
      const group = rows.filter((row) => (row.kind || row.op) === kind);
      return {
        type: "scatter", mode: "markers", name: show.plain(kind), x: group.map(intensity), y: group.map((row) => cost(row).macs / cost(row).seconds / 1e9),
        text: group.map((row) => show.plain(`${row.name}: ${show.seconds(cost(row).seconds)}`)), customdata: group.map((row) => row.name),
        hovertemplate: "%{text}<br>%{x:.3~g} MAC/B, %{y:.3~g} GMAC/s<extra></extra>",
        marker: {
          size: group.map((row) => 7 + 26 * Math.sqrt(cost(row).share)), color: PALETTE[at % PALETTE.length], opacity: 0.8,
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
      legend: { orientation: "h", y: 1.1, x: 0 },
      annotations: [
        { x: Math.log10(low * 1.3), y: Math.log10((low * 1.3 * memory) / 1e9), text: `memory ${show.number(memory / 1e9)} GB/s`, showarrow: false, xanchor: "left", yanchor: "top", yshift: -8, xshift: 12, font: { color: css("--muted") } },
        { x: Math.log10(high), y: Math.log10(peak / 1e9), text: `int8 ${show.number(peak / 1e9)} GMAC/s`, showarrow: false, xanchor: "right", yanchor: "bottom", font: { color: css("--muted") } },
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
    const hover = (point) => show.plain(`${point.name}: ${show.number(point[speed])} tokens/s, ${show.bytes(point.bytes)}` + (point.kl === null ? "" : `, KL ${point.kl.toPrecision(3)}`));
    const known = found.map((point) => point.kl).filter((kl) => kl !== null);
    const scale = loss ? { color: (points) => points.map((point) => point.kl ?? 0), colorscale: "Viridis", cmin: 0, cmax: Math.max(...known), reversescale: true } : null;
    const trace = (name, points, extra) => ({
      type: "scatter", mode: "markers", name, x: points.map((point) => point.bitsAll), y: points.map((point) => point[speed]),
      text: points.map(hover), hovertemplate: "%{text}<br>%{x:.2f} bits<extra></extra>", ...extra,
      marker: { size: 9, ...(scale ? { ...scale, color: scale.color(points) } : {}), ...extra.marker },
    });
    const whole = found.filter((point) => point.all);
    const now = { name: "now", ...report.predict(report.current()) };
    const then = { name: "what if", ...report.predict(report.state.recipe) };
    const traces = [
      trace("one site changed", found.filter((point) => !point.all), { marker: { size: 8, opacity: 0.75, ...(scale ? {} : { color: css("--muted") }) } }),
      trace("all projections", whole, { mode: "lines+markers+text", cliponaxis: false, line: { color: css("--line") }, texttemplate: whole.map((point) => point.kind), textposition: "top center", marker: { size: 13, symbol: "square", ...(scale ? { showscale: true, colorbar: { title: { text: "KL, nats/token" }, thickness: 10 } } : { color: "#0e7490" }) } }),
      trace("now", [now], { marker: { size: 16, symbol: "circle-open", color: css("--ink"), line: { width: 3 } } }),
      trace("what if", [then], { marker: { size: 15, symbol: "star", color: css("--accent"), line: { width: 1, color: css("--panel") } } }),
    ];
    if (scale) for (const hidden of traces.slice(2)) { delete hidden.marker.colorscale; delete hidden.marker.cmin; delete hidden.marker.cmax; delete hidden.marker.reversescale; }
    draw(traces, {
      xaxis: { title: { text: "bits per weight, everything counted" } },
      yaxis: { title: { text: `${speed} tokens/s` }, rangemode: "normal" },
      legend: { orientation: "h", y: 1.12, x: 0 }, margin: { l: 60, r: 14, t: 34, b: 40 },
    }, (point) => {
      const chosen = point.curveNumber === 0 ? found.filter((each) => !each.all)[point.pointNumber] : point.curveNumber === 1 ? whole[point.pointNumber] : null;
      if (chosen) {
        report.state.recipe = chosen.recipe;
        report.set("recipe", chosen.recipe);
      }
      return null;
    });
  }

  const kinds = { bars, treemap, roofline, tradeoff };
  report.listen((what) => {
    const tab = report.state.tab;
    if (!(tab in kinds)) return;
    if (what === "chosen" ? tab === "roofline" : what === "recipe" ? tab === "tradeoff" : true) kinds[tab]();
  });
  return {};
})();
