"use strict";
// The data, what is selected and changed, and predictions: the same sums as pocketlm.profile.whatif.
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = data.rows;
  const byName = new Map(rows.map((row) => [row.name, row]));
  const matrixOf = new Map();
  for (const matrix of data.matrices) for (const op of matrix.ops) matrixOf.set(op, matrix);
  const state = { step: "decode", chosen: new Set(), recipe: new Map(), tab: "graph", measure: "time" };
  const listeners = [];

  const current = () => new Map(data.matrices.map((matrix) => [matrix.name, matrix.current]));
  state.recipe = current();

  function predict(recipe) {
    const base = data.base;
    let size = base.other_bytes, innerBytes = 0, innerElements = 0;
    let decode = base.decode, prefill = base.prefill, kl = 0, unknown = 0;
    for (const matrix of data.matrices) {
      const kind = recipe.get(matrix.name);
      size += matrix.bytes[kind];
      if (matrix.projection) {
        innerBytes += matrix.bytes[kind];
        innerElements += matrix.elements;
      }
      decode += matrix.decode[kind] - matrix.decode[matrix.current];
      prefill += matrix.prefill[kind] - matrix.prefill[matrix.current];
      if (kind in matrix.kl) kl += matrix.kl[kind];
      else unknown += 1;
    }
    return {
      bytes: size,
      bits: innerElements ? (8 * innerBytes) / innerElements : 0,
      bitsAll: base.parameters ? (8 * size) / base.parameters : 0,
      decode: 1 / decode,
      prefill: base.prompt / prefill,
      joules: decode * base.watts,
      kl: unknown ? null : kl,
    };
  }

  // Wildcards as in the shell; without any, a part of a name is enough.
  function matcher(text) {
    const words = text.trim().split(/\s+/).filter(Boolean).map((word) => {
      if (!/[*?[]/.test(word)) {
        const low = word.toLowerCase();
        return (row) => names(row).some((name) => name.toLowerCase().includes(low));
      }
      const body = word.replace(/[.+^${}()|\\\]]/g, (c) => (c === "]" ? c : "\\" + c)).replace(/\*/g, ".*").replace(/\?/g, ".").replace(/\[!/g, "[^");
      let expression;
      try { expression = new RegExp(`^${body}$`); } catch { return () => false; }
      return (row) => names(row).some((name) => expression.test(name));
    });
    return (row) => words.every((word) => word(row));
  }
  const names = (row) => [row.name, row.site, row.tensor || "", row.kind || "", row.op];

  const changed = (row) => {
    const matrix = matrixOf.get(row.name);
    return matrix !== undefined && state.recipe.get(matrix.name) !== matrix.current;
  };
  // The choice "keep" by what it is.
  const kept = (matrix, kind) => (kind === "keep" ? (matrix.current === "keep" ? matrix.kind : "16 bits") : kind);
  const notify = (what) => listeners.forEach((listener) => listener(what));

  return {
    data, rows, byName, matrixOf, state, predict, matcher, changed, current, kept,
    listen: (listener) => listeners.push(listener),
    choose(names, add) {
      if (!add) state.chosen.clear();
      for (const name of names) {
        if (add && state.chosen.has(name) && names.length === 1) state.chosen.delete(name);
        else state.chosen.add(name);
      }
      notify("chosen");
    },
    setKind(matrices, kind) {
      for (const matrix of matrices) state.recipe.set(matrix.name, kind);
      notify("recipe");
    },
    reset() { state.recipe = current(); notify("recipe"); },
    set(key, value) { state[key] = value; notify(key); },
    recipeText() {
      // As pocketlm.palettize.recipe writes it: one tensor a line.
      const figures = predict(state.recipe);
      const short = (value) => Number(value.toPrecision(4));
      const predicted = {
        bytes: figures.bytes, bits_per_weight_projections: short(figures.bits), bits_per_weight_all: short(figures.bitsAll),
        tokens_per_second: short(figures.decode), ...(figures.kl === null ? {} : { kl: short(figures.kl) }),
      };
      const rows = data.matrices.map((matrix) => {
        const kind = state.recipe.get(matrix.name);
        const entry = {
          kind, sites: matrix.ops, shape: matrix.shape, ...(kind in matrix.kl ? { kl: Number(matrix.kl[kind].toPrecision(4)) } : {}),
          bytes: matrix.bytes[kind], microseconds: Math.round(1e8 * matrix.decode[kind]) / 100,
        };
        return `  ${JSON.stringify(matrix.name)}: ${JSON.stringify(entry)}`;
      });
      return `{\n "pocketlm_recipe": 1,\n "predicted": ${JSON.stringify(predicted)},\n "tensors": {\n${rows.join(",\n")}\n }\n}\n`;
    },
  };
})();

// Formats. Everything becomes text, never markup.
const show = {
  number: (value, digits = 3) => {
    if (value === null || !isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    return String(Number(value.toPrecision(digits)));
  },
  bytes: (value) => {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (Math.abs(value) < 1000 || unit === "GB") return `${unit === "B" ? value : show.number(value)} ${unit}`;
      value /= 1000;
    }
  },
  seconds: (value, digits = 3) => (value >= 1 ? `${show.number(value, digits)} s` : value >= 1e-3 ? `${show.number(value * 1e3, digits)} ms` : `${show.number(value * 1e6, digits)} µs`),
  // No digits of a time that its spread makes meaningless; of fewer steps than three there is no spread.
  sure: (total, { seconds, spread }) => (total.steps < 3 ? 3 : 2 * spread > seconds ? 1 : 20 * spread > seconds ? 2 : 3),
  spread: (total, cost) => (total.steps < 3 ? "" : show.seconds(cost.spread, show.sure(total, cost) === 1 ? 1 : 2)),
  joules: (value) => (value >= 1 ? `${show.number(value)} J` : value >= 1e-3 ? `${show.number(value * 1e3)} mJ` : `${show.number(value * 1e6)} µJ`),
  percent: (value) => (value * 100 >= 99.95 ? `${Math.round(value * 100)} %` : `${(value * 100).toFixed(1)} %`),
  // Plotly takes some markup in texts.
  plain: (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"),
};

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "role") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}
