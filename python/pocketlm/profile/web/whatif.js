"use strict";
// What if: other kinds for what is selected, what that would change, and the recipe to take along.
const whatif = (() => {
  const get = (id) => document.getElementById(id);
  const chosen = () => [...new Set([...report.state.chosen].map((name) => report.matrixOf.get(name)).filter(Boolean))];

  function targets() {
    const matrices = chosen();
    const { chosen: names } = report.state;
    get("selected").textContent = names.size === 1 ? [...names][0] : names.size ? `${names.size} selected` : "nothing selected";
    get("selected").title = get("selected").textContent;
    // Always about as wide, so that the buttons stay where they are.
    get("target").textContent = matrices.length ? `${matrices.length} tensor${matrices.length === 1 ? "" : "s"}` : "…";
    const kinds = new Set(matrices.map((matrix) => report.state.recipe.get(matrix.name)));
    get("kinds").replaceChildren(...report.data.kinds.map((kind) => element("button", {
      type: "button", disabled: !matrices.length, "data-kind": kind, "aria-pressed": String(kinds.size === 1 && kinds.has(kind)),
      onclick: () => report.setKind(chosen(), kind),
    }, kind)));
  }

  function figures() {
    const now = report.predict(report.current()), then = report.predict(report.state.recipe);
    const same = (value) => value;
    const lines = [
      ["size", "bytes", show.bytes, -1],
      ["bits, projections", "bits", (value) => value.toFixed(2), -1],
      ["bits, everything", "bitsAll", (value) => value.toFixed(2), -1],
      ["decode, tokens/s", "decode", show.number, 1],
      ["prefill, tokens/s", "prefill", show.number, 1],
      ["energy a token", "joules", show.joules, -1],
      ["KL, nats a token", "kl", (value) => (value === null ? "unknown" : value.toPrecision(3)), -1],
    ];
    get("figures").replaceChildren(...lines.map(([title, key, format, better]) => {
      const change = now[key] && then[key] !== null ? then[key] / now[key] - 1 : 0;
      const notable = Math.abs(change) > 5e-4;
      const text = notable ? `${change > 0 ? "+" : "−"}${(100 * Math.abs(change)).toFixed(Math.abs(change) < 0.1 ? 1 : 0)} %` : "";
      return element("tr", { "data-figure": key }, element("td", {}, title), element("td", {}, format(now[key])), element("td", {}, format(then[key])),
        element("td", { class: notable ? (change * better > 0 ? "good" : "bad") : "" }, same(text)));
    }));
    const changes = report.data.matrices.filter((matrix) => report.state.recipe.get(matrix.name) !== matrix.current);
    get("changes").replaceChildren(...(changes.length
      ? changes.map((matrix) => element("div", { title: matrix.name }, element("span", {}, matrix.ops[matrix.ops.length - 1]), element("span", {}, `${report.kept(matrix, matrix.current)} → ${report.kept(matrix, report.state.recipe.get(matrix.name))}`)))
      : [element("p", { class: "muted" }, "Select operations in the graph, a chart or the table, then choose a kind.")]));
    get("reset").disabled = !changes.length;
  }

  function save() {
    const url = URL.createObjectURL(new Blob([report.recipeText()], { type: "application/json" }));
    const link = element("a", { href: url, download: "recipe.json" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  get("export").addEventListener("click", save);
  get("reset").addEventListener("click", () => report.reset());
  report.listen((what) => {
    if (what === "chosen") targets();
    else if (what === "recipe") { targets(); figures(); }
  });
  return { start() { targets(); figures(); } };
})();
