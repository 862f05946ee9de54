"use strict";
// Sorts a table by the column whose header is pressed, once more for the other direction. Cells
// with data-value are compared as numbers; an empty one is unknown and stays at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator("en", { numeric: true });
  const valueOf = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    if (dataset.value === undefined) return textContent || null;
    return dataset.value === "" ? null : Number(dataset.value);
  };
  const sort = (column, sign) => {
    const rows = [...table.tBodies[0].rows].map((row) => [row, valueOf(row, column)]);
    rows.sort(([, a], [, b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "number" ? a - b : words.compare(a, b));
    });
    table.tBodies[0].append(...rows.map(([row]) => row));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      sort(column, falling ? -1 : 1);
    });
  });
}
