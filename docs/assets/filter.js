// A field that filters the rows of long tables, such as those of the architectures.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".md-typeset table")) {
    const rows = [...table.tBodies[0]?.rows ?? []];
    if (rows.length < 40) continue;
    const field = Object.assign(document.createElement("input"), {
      type: "search", className: "table-filter", placeholder: `Filter ${rows.length} rows`,
    });
    field.setAttribute("aria-label", "Filter the rows of the table below");
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(words);
    });
    (table.closest(".md-typeset__scrollwrap") ?? table).before(field);
  }
});
