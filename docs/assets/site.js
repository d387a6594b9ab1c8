// What the theme leaves out: a field that filters the rows of long tables, and names for screen readers.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search");
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
  // The theme wraps tables when it starts; what can be scrolled has to be reached by the keyboard.
  setTimeout(() => {
    for (const wide of document.querySelectorAll(".md-typeset__scrollwrap, figure.drawing, .md-typeset pre > code")) {
      if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    }
  }, 500);
});
