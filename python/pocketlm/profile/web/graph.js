"use strict";
// The graph: a lane for each layer, operations from left to right by what they wait for; colour is the share of time.
const graph = (() => {
  const box = document.getElementById("graph");
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 20, GAP = 6, PAD = 8, LABEL = 62;
  let nodes = new Map();

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // Slices do nothing: what reads one reads what it is cut from.
  function source(name) {
    let row = report.byName.get(name);
    while (row && row.op === "slice") row = report.byName.get(row.inputs[0]);
    return row;
  }

  function lanes() {
    const found = [];
    for (const row of report.rows) {
      if (row.op === "slice" || row.op === "dispatch") continue;
      const key = row.layer === null ? (found.some((lane) => lane.layer !== null) ? "out" : "in") : row.layer;
      let lane = found.find((lane) => lane.key === key);
      if (!lane) found.push((lane = { key, layer: row.layer, rows: [] }));
      lane.rows.push(row);
    }
    for (const lane of found) {
      const depth = new Map();
      for (const row of lane.rows) {
        const before = row.inputs.map(source).filter((from) => from && depth.has(from.name)).map((from) => depth.get(from.name) + 1);
        depth.set(row.name, Math.max(0, ...before));
      }
      if (lane.key === "out" && depth.has("sample")) depth.set("sample", depth.size - 1);
      lane.columns = [];
      for (const row of lane.rows) (lane.columns[depth.get(row.name)] ||= []).push(row);
      lane.columns = lane.columns.filter(Boolean);
      lane.tall = Math.max(...lane.columns.map((column) => column.length));
    }
    return found;
  }

  const colour = (share) => {
    const most = Math.max(...report.rows.map((row) => row[report.state.step].share), 1e-9);
    return `color-mix(in oklab, var(--high) ${Math.round(85 * Math.sqrt(share / most))}%, var(--low))`;
  };

  function label(row) {
    const parts = row.site.split(".");
    return parts.length > 2 ? parts.slice(-2).join(".") : parts[parts.length - 1];
  }

  function node(row, x, y, width) {
    const text = svg("text", { x: x + width / 2, y: y + 14, "text-anchor": "middle" });
    const room = Math.floor((width - 4) / 6);
    const name = label(row);
    text.textContent = name.length > room ? name.slice(0, Math.max(1, room - 1)) + "…" : name;
    const title = svg("title", {});
    const cost = row[report.state.step];
    title.textContent = `${row.name}${row.kind ? ` (${row.kind})` : ""}\n${show.seconds(cost.seconds)}, ${show.percent(cost.share)}` +
      (cost.seconds ? "" : row.fused.length ? "\ncomputed within its neighbours" : "");
    const made = svg("g", { class: "node", tabindex: 0, "data-name": row.name }, title,
      svg("rect", { x, y, width, height: HEIGHT, rx: 4, style: `fill: ${colour(cost.share)}` }), text);
    const pick = (event) => report.choose([row.name], event.ctrlKey || event.metaKey || event.shiftKey);
    made.addEventListener("click", pick);
    made.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(event); });
    nodes.set(row.name, made);
    return { row, made, x, y, width };
  }

  function draw() {
    const all = lanes(), width = Math.max(560, box.clientWidth - 4);
    const most = Math.max(...all.map((lane) => lane.columns.length));
    const step = (width - LABEL - 2 * PAD) / most, wide = Math.min(96, step - 12);
    nodes = new Map();
    const drawing = svg("svg", { width, role: "group", "aria-label": "operations of the model" });
    let top = 4;
    for (const lane of all) {
      const arc = lane.columns.length > 4 ? 14 : 0;
      const tall = lane.tall * (HEIGHT + GAP) + 2 * PAD + arc - GAP;
      const text = svg("text", { x: 10, y: top + tall / 2 + 4 });
      text.textContent = lane.layer === null ? lane.key : `layer ${lane.layer}`;
      const name = svg("g", { class: "lane" }, svg("rect", { x: 2, y: top, width: width - 6, height: tall, rx: 6 }), text);
      text.addEventListener("click", (event) => report.choose(lane.rows.map((row) => row.name), event.ctrlKey || event.shiftKey));
      const placed = new Map(), shapes = [];
      lane.columns.forEach((column, at) => {
        const x = LABEL + PAD + at * step;
        const first = top + PAD + arc + ((lane.tall - column.length) * (HEIGHT + GAP)) / 2;
        column.forEach((row, index) => {
          const shape = node(row, x, first + index * (HEIGHT + GAP), wide);
          placed.set(row.name, { ...shape, at });
          shapes.push(shape.made);
        });
      });
      drawing.append(name, ...edges(placed, top), ...shapes);
      top += tall + 5;
    }
    drawing.setAttribute("height", top);
    box.replaceChildren(drawing);
    mark();
  }

  function edges(placed, top) {
    const found = [];
    for (const { row, x, y, at } of placed.values()) {
      for (const from of row.inputs.map(source)) {
        const start = from && placed.get(from.name);
        const y2 = y + HEIGHT / 2;
        if (!start) {
          // From the lane before: the residual stream comes in at the left.
          const path = at === 0 ? `M ${LABEL} ${y2} H ${x}` : `M ${LABEL} ${top + 8} H ${x + 4} Q ${x + 12} ${top + 8} ${x + 12} ${y}`;
          found.push(svg("path", { d: path }));
          continue;
        }
        const x1 = start.x + start.width, y1 = start.y + HEIGHT / 2;
        const path = at - start.at > 1
          ? `M ${x1 - 8} ${start.y} Q ${x1 - 8} ${top + 8} ${x1 + 4} ${top + 8} H ${x + 4} Q ${x + 12} ${top + 8} ${x + 12} ${y}`
          : `M ${x1} ${y1} C ${(x1 + x) / 2} ${y1} ${(x1 + x) / 2} ${y2} ${x} ${y2}`;
        found.push(svg("path", { d: path }));
      }
    }
    return found;
  }

  function mark(scroll) {
    for (const [name, made] of nodes) {
      made.classList.toggle("chosen", report.state.chosen.has(name));
      made.classList.toggle("changed", report.changed(report.byName.get(name)));
    }
    const [first] = report.state.chosen;
    if (scroll && nodes.has(first) && !box.matches(":hover")) nodes.get(first).scrollIntoView({ block: "nearest" });
  }

  report.listen((what) => {
    if (what === "chosen") mark(report.state.tab === "graph");
    else if (what === "recipe") mark();
    else if (what === "step" || what === "tab" || what === "size") { if (report.state.tab === "graph") draw(); }
  });
  return { draw };
})();
