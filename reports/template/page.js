"use strict";
const table = document.querySelector("table");
const body = table.tBodies[0];
const filter = document.getElementById("filter");
const onlyClear = document.getElementById("only-clear");

function showRows() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word)) || (onlyClear.checked && !row.classList.contains("clear"));
    shown += !row.hidden;
  }
  document.getElementById("count").textContent = `${shown} of ${body.rows.length} rows`;
}

function showColumn(box) {
  for (const cell of table.querySelectorAll(`[data-column="${box.dataset.column}"]`)) cell.hidden = !box.checked;
}

function sortBy(header) {
  const index = header.cellIndex;
  const best = header.dataset.direction === "higher is better" ? "descending" : "ascending";
  const other = best === "descending" ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === best ? other : best;
  for (const each of table.tHead.rows[0].cells) each.setAttribute("aria-sort", each === header ? order : "none");
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].sort((a, b) => {
    if (index === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
    const [x, y] = [a, b].map((row) => row.cells[index].dataset.value);
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    return sign * (Number(x) - Number(y));
  });
  body.append(...rows);
}

filter.addEventListener("input", showRows);
onlyClear.addEventListener("change", showRows);
const differences = document.getElementById("differences");
differences.addEventListener("change", () => table.classList.toggle("without-differences", !differences.checked));
for (const box of document.querySelectorAll("#chooser input")) {
  box.addEventListener("change", () => showColumn(box));
  showColumn(box);
}
for (const header of table.tHead.rows[0].cells) header.querySelector("button").addEventListener("click", () => sortBy(header));
for (const spec of document.querySelectorAll('script[id^="spec-"]')) {
  const chart = document.getElementById(spec.id.replace("spec-", "chart-"));
  const bind = document.getElementById(spec.id.replace("spec-", "choice-"));
  vegaEmbed(chart, JSON.parse(spec.textContent), { renderer: "svg", actions: false, bind });
}
showRows();
