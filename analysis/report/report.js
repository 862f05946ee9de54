// Sorts a table by the column whose header is pressed, once more for the other direction. Cells
// with data-value are compared as numbers; an empty one is unknown and stays at the end. Of many
// rows the first stand in the table, and the rest as text behind it: more are shown when the reader
// comes to the last one.
const AT_ONCE = 1000;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const later = table.parentElement.querySelector("script");
  const words = new Intl.Collator("en", { numeric: true });
  const readLater = () => {
    if (!later?.textContent) return;
    const holder = document.createElement("template");
    holder.innerHTML = later.textContent;
    rows.push(...holder.content.children);
    later.textContent = "";
  };
  const atEnd = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) append();
  });
  const append = () => {
    readLater();
    const shown = body.rows.length;
    body.append(...rows.slice(shown, shown + AT_ONCE));
    watchEnd();
  };
  const watchEnd = () => {
    atEnd.disconnect();
    if (body.rows.length < rows.length || later?.textContent) atEnd.observe(body.lastElementChild);
  };
  const valueOf = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    if (dataset.value === undefined) return textContent || null;
    return dataset.value === "" ? null : Number(dataset.value);
  };
  const sort = (column, sign) => {
    readLater();
    const values = new Map(rows.map((row) => [row, valueOf(row, column)]));
    rows.sort((one, other) => {
      const [a, b] = [values.get(one), values.get(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "number" ? a - b : words.compare(a, b));
    });
    body.replaceChildren(...rows.slice(0, AT_ONCE));
    watchEnd();
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
  watchEnd();
}
