"use strict";
// Head, tabs, theme.
(() => {
  const { data } = report;
  const get = (id) => document.getElementById(id);
  get("model").textContent = data.model || "model";
  get("model").title = data.model;
  const where = `${data.machine.processor}, ${data.machine.isa}, ${data.machine.threads} thread${data.machine.threads === 1 ? "" : "s"}`;
  // Last, where a narrow page cuts the line: it is whole where the mouse rests.
  const others = data.others_cpu === null ? "" : `; other processes took ${show.percent(data.others_cpu)} of it meanwhile`;
  get("machine").title = get("machine").textContent = where + others;
  // Decoding and prefill have each their power: what is predicted is of decoding.
  const power = (step) => `${show.number(data.energy[step].watts)} W in ${step} (${data.energy[step].source})`;
  get("notes").textContent = `Energy: ${power("decode")}`;
  get("notes").title = `Energy: ${power("decode")}; ${power("prefill")}. Times are predicted by what each product takes on this machine as each kind.`;

  const card = (value, title, hint = "") => element("div", { class: "card", title: hint }, element("b", {}, value), element("span", {}, title));
  function cards() {
    const total = data[report.state.step];
    const cost = total.timing_cost >= 5e-4 ? `${(100 * total.timing_cost).toFixed(1)} %` : "nothing that shows";
    get("cards").replaceChildren(
      card(show.bytes(data.bytes), `${show.number(data.parameters / 1e6)} M parameters`),
      card(data.bits_per_weight_projections.toFixed(2), `bits, projections (${data.bits_per_weight_all.toFixed(2)} all)`),
      card(show.number(data.decode.tokens_per_second), `decode tokens/s after ${data.context}`),
      card(show.number(data.prefill.tokens_per_second), `prefill tokens/s of ${data.prompt}`),
      card(show.seconds(total.seconds, show.sure(total, total)), `${report.state.step} step${total.steps < 3 ? "" : ` ± ${show.spread(total, total)}`}`,
        `Timing each operation adds ${cost}, which the rows leave out. ${total.steps} steps of each, on ${total.threads} thread${total.threads === 1 ? "" : "s"}.`),
      card(show.joules(total.joules / total.tokens), `a token${data.energy[report.state.step].measured ? "" : " (estimate)"}`, power(report.state.step)),
    );
  }

  function toggle(box, names, key) {
    const buttons = names.map((name) => element("button", { type: "button", "aria-pressed": String(report.state[key] === name), onclick: () => {
      report.set(key, name);
      buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === name)));
    } }, name));
    box.replaceChildren(...buttons);
  }
  toggle(get("steps"), ["decode", "prefill"], "step");

  const measure = element("select", { "aria-label": "what to show", onchange: (event) => report.set("measure", event.target.value) },
    element("option", { value: "time" }, "by time"), element("option", { value: "bytes" }, "by bytes"));
  const titles = { graph: "Graph", bars: "Layers", treemap: "Treemap", roofline: "Roofline", tradeoff: "Bits, speed, loss" };
  const tabs = Object.entries(titles).map(([tab, title]) => element("button", {
    type: "button", role: "tab", "data-tab": tab, onclick: () => open(tab),
  }, title));
  get("tabs").replaceChildren(...tabs, measure);
  function open(tab) {
    tabs.forEach((button) => button.setAttribute("aria-selected", String(button.dataset.tab === tab)));
    get("graph").hidden = tab !== "graph";
    get("chart").hidden = tab === "graph";
    measure.hidden = !["bars", "treemap"].includes(tab);
    report.set("tab", tab);
  }

  const dark = matchMedia("(prefers-color-scheme: dark)");
  function theme(name) {
    document.documentElement.dataset.theme = name;
    report.set("theme", name);
  }
  get("theme").addEventListener("click", () => theme(report.state.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => theme(dark.matches ? "dark" : "light"));

  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => report.set("size", innerWidth), 100); });
  report.listen((what) => { if (what === "step") cards(); });
  cards();
  table.start();
  whatif.start();
  theme(dark.matches ? "dark" : "light");
  open("graph");
})();
