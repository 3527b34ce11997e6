"use strict";
// The table: sorted by a column, filtered by a pattern, with a choice of kind in each row that has one.
const table = (() => {
  const cost = (row) => row[report.state.step];
  const whole = () => report.data[report.state.step];
  const place = new Map(report.rows.map((row, at) => [row.name, at]));
  const columns = [
    { id: "name", title: "operation", left: true, value: (row) => row.name, order: (row) => place.get(row.name) },
    { id: "op", title: "type", left: true, value: (row) => row.op },
    { id: "kind", title: "kind", left: true, value: (row) => row.kind || "" },
    { id: "shape", title: "shape", value: (row) => (row.shape ? row.shape.join(" × ") : ""), order: (row) => (row.shape ? row.shape[0] * row.shape[1] : 0) },
    { id: "bits", title: "bits", value: (row) => (row.bits ? row.bits.toFixed(2) : ""), order: (row) => row.bits || 0 },
    { id: "bytes", title: "bytes read", value: (row) => (cost(row).bytes ? show.bytes(cost(row).bytes) : ""), order: (row) => cost(row).bytes },
    { id: "macs", title: "MACs", value: (row) => (cost(row).macs ? show.number(cost(row).macs / 1e6) + " M" : ""), order: (row) => cost(row).macs },
    { id: "time", title: "time", value: (row) => show.seconds(cost(row).seconds, show.sure(whole(), cost(row))), order: (row) => cost(row).seconds },
    { id: "spread", title: "±", value: (row) => show.spread(whole(), cost(row)), order: (row) => cost(row).spread },
    { id: "share", title: "share", value: (row) => show.percent(cost(row).share), order: (row) => cost(row).share },
    { id: "rate", title: "GB/s", value: (row) => (cost(row).bytes ? show.number(cost(row).bytes_per_second / 1e9) : ""), order: (row) => cost(row).bytes_per_second },
    { id: "memory", title: "of memory", value: (row) => (cost(row).bytes ? show.percent(cost(row).bandwidth_share) : ""), order: (row) => cost(row).bandwidth_share },
    { id: "roof", title: "roof", value: (row) => (cost(row).bound ? show.seconds(cost(row).roof_seconds) : ""), order: (row) => cost(row).roof_seconds },
    { id: "bound", title: "bound", left: true, value: (row) => cost(row).bound || "" },
    { id: "energy", title: "energy", value: (row) => show.joules(cost(row).joules), order: (row) => cost(row).joules },
    { id: "kl", title: "KL", value: (row) => (!row.tensor ? "" : row.sensitivity === null ? "–" : show.number(row.sensitivity, 2)), order: (row) => (!row.tensor ? -2 : row.sensitivity === null ? -1 : row.sensitivity) },
  ];
  const head = document.querySelector("#ops thead"), body = document.querySelector("#ops tbody");
  const filter = document.getElementById("filter"), count = document.getElementById("count");
  const lines = new Map();
  let sort = { id: "time", down: true };

  function shown() {
    const fits = report.matcher(filter.value);
    const column = columns.find(({ id }) => id === sort.id);
    const order = column.order || column.value;
    const found = then().filter((row) => (row.decode.share || row.prefill.share) && fits(row));
    const sign = sort.down ? -1 : 1;
    return found
      .map((row, at) => [order(row), at, row])
      .sort((a, b) => (a[0] < b[0] ? -sign : a[0] > b[0] ? sign : a[1] - b[1]))
      .map(([, , row]) => row);
  }

  function header() {
    head.replaceChildren(element("tr", {}, ...columns.map((column) => element("th", {
      class: column.left ? "left" : "",
      tabindex: 0,
      "data-column": column.id,
      "aria-sort": sort.id === column.id ? (sort.down ? "descending" : "ascending") : "none",
      onclick: () => resort(column.id),
      onkeydown: (event) => { if (event.key === "Enter") resort(column.id); },
    }, column.title))));
  }

  function resort(id) {
    const text = ["name", "op", "kind", "bound"].includes(id);
    sort = { id, down: sort.id === id ? !sort.down : !text };
    header();
    fill();
  }

  function kindCell(row) {
    const matrix = report.matrixOf.get(row.name);
    if (!matrix) return [row.kind || ""];
    const now = report.state.recipe.get(matrix.name);
    const options = report.data.kinds.map((kind) => element("option", { value: kind, selected: kind === now }, kind === "keep" && matrix.current === "keep" ? matrix.kind : kind));
    const menu = element("select", {
      "aria-label": `kind of ${row.name}`,
      onclick: (event) => event.stopPropagation(),
      onchange: (event) => report.setKind([matrix], event.target.value),
    }, ...options);
    return now === matrix.current ? [menu] : [`${report.kept(matrix, matrix.current)} → `, menu];
  }

  function cell(column, row, old) {
    if (column.id === "kind") return element("td", { class: "left kind" }, ...kindCell(row));
    const text = column.value(row), before = column.value(old), order = column.order || column.value;
    // Of a changed row all that is predicted is marked; shares of the others move too, where that shows.
    const predicted = report.changed(old) ? order(row) !== order(old) : text !== before;
    const made = element("td", { class: [column.left ? "left" : "", column.id, predicted ? "then" : ""].join(" ").trim() });
    if (column.id === "share") {
      const fill = element("i");
      fill.style.width = `${Math.min(100, 100 * cost(row).share)}%`;
      made.append(element("span", { class: "bar" }, fill), element("b", {}, text));
    } else made.append(text);
    if (predicted) made.title = `predicted; now ${before || "none"}`;
    if (column.id === "spread" && report.changed(old)) {
      made.classList.add("stays");
      made.title = `measured as ${old.kind}: how far times wander is not predicted`;
    }
    return made;
  }

  function line(row) {
    const old = report.byName.get(row.name);
    const cells = columns.map((column) => cell(column, row, old));
    cells[0].title = row.fused.length ? `${row.name}\nmeasured together with ${row.fused.join(", ")}` : row.name;
    const made = element("tr", {
      "data-name": row.name,
      onclick: (event) => report.choose([row.name], event.ctrlKey || event.metaKey || event.shiftKey),
    }, ...cells);
    lines.set(row.name, made);
    return made;
  }

  // What figures of the table need to be understood.
  function remarks() {
    const said = [], { two_terms: head } = report.data;
    if (report.data.matrices.some((matrix) => report.state.recipe.get(matrix.name) !== matrix.current)) said.push("orange: predicted, ± is not");
    const row = report.byName.get(head);
    if (row && /^p\d/.test(row.kind || "")) said.push(`MACs of ${head} count twice: it reads its activations in two terms`);
    for (const matrix of report.data.matrices) {
      if (matrix.ops.length > 1 && Object.keys(matrix.kl).length) said.push(`${matrix.ops.join(" and ")} are one tensor: its KL counts once`);
    }
    document.getElementById("remarks").textContent = said.join("; ");
  }

  function fill() {
    const found = shown();
    lines.clear();
    body.replaceChildren(...found.map(line));
    const share = found.reduce((sum, row) => sum + cost(row).share, 0);
    const time = found.reduce((sum, row) => sum + cost(row).seconds, 0);
    count.textContent = `${found.length} operations, ${show.seconds(time)}, ${show.percent(share)} of the ${report.state.step} step`;
    remarks();
    mark();
  }

  function mark(scroll) {
    for (const [name, made] of lines) {
      made.classList.toggle("chosen", report.state.chosen.has(name));
      made.classList.toggle("changed", report.changed(report.byName.get(name)));
    }
    if (scroll) {
      const first = [...lines].find(([name]) => report.state.chosen.has(name));
      const box = body.closest(".scroll");
      if (first && !box.matches(":hover")) first[1].scrollIntoView({ block: "nearest" });
    }
  }

  filter.addEventListener("input", fill);
  document.getElementById("select-all").addEventListener("click", () => report.choose(shown().map((row) => row.name)));
  document.getElementById("clear").addEventListener("click", () => report.choose([]));
  report.listen((what) => {
    if (what === "chosen") mark(true);
    else if (what === "step" || what === "recipe") fill();
  });
  return { start() { header(); fill(); } };
})();
