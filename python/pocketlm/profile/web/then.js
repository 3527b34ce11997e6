"use strict";
// A row as it would be with the kinds of the recipe: what can be predicted of it. Shares are of the step as it would be.
const then = (() => {
  const { data, state } = report;
  const palette = (kind) => /^p\d/.test(kind);

  function cost(row, matrix, kind, step, whole) {
    const now = row[step];
    if (!matrix || kind === matrix.current) return { ...now, share: whole ? now.seconds / whole : 0 };
    const product = row.op === "linear";
    const before = matrix.bytes[matrix.current], after = matrix.bytes[kind];
    // A product reads the matrix once for each chunk of the prompt, and its bias; an embedding looks rows up.
    const bytes = product ? now.bytes + Math.max(1, Math.round(now.bytes / before)) * (after - before) : Math.round((now.bytes * after) / before);
    const seconds = product && matrix[step][matrix.current] ? (now.seconds * matrix[step][kind]) / matrix[step][matrix.current] : now.seconds;
    const terms = (some) => (row.name === data.two_terms && palette(some) ? 2 : 1);
    const macs = (now.macs * terms(kind === "keep" ? "" : kind)) / terms(row.kind);
    const { read_bandwidth: memory, int8_peak: peak } = data.machine;
    const rate = seconds ? bytes / seconds : 0;
    return {
      ...now, bytes, macs, seconds, share: whole ? seconds / whole : 0, bytes_per_second: rate, bandwidth_share: rate / memory,
      bound: bytes || macs ? (bytes / memory >= macs / peak ? "memory" : "compute") : null,
      roof_seconds: Math.max(bytes / memory, macs / peak), joules: now.seconds ? (now.joules * seconds) / now.seconds : now.joules,
    };
  }

  // All rows, in their order.
  return () => {
    const figures = report.predict(state.recipe);
    const whole = { decode: 1 / figures.decode, prefill: data.base.prompt / figures.prefill };
    const same = data.matrices.every((matrix) => state.recipe.get(matrix.name) === matrix.current);
    if (same) return report.rows;
    return report.rows.map((row) => {
      const matrix = report.matrixOf.get(row.name), kind = matrix && state.recipe.get(matrix.name);
      const found = { ...row, decode: cost(row, matrix, kind, "decode", whole.decode), prefill: cost(row, matrix, kind, "prefill", whole.prefill) };
      if (!report.changed(row)) return found;
      const kl = kind in matrix.kl ? matrix.kl[kind] : null;
      return { ...found, kind: report.kept(matrix, kind), bits: (8 * matrix.bytes[kind]) / matrix.elements, sensitivity: kl };
    });
  };
})();
