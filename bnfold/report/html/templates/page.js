// Tables sort and filter, pictures of graphs enlarge; the record can be downloaded. Without this script, tables are plain tables.
"use strict";

function sortKey(row, column, isNumber) {
  const cell = row.cells[column];
  if (!isNumber) return cell.textContent.trim().toLowerCase();
  const value = cell.dataset.value;
  return value === undefined || value === "nan" ? null : Number(value.replace("inf", "Infinity"));
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null); // what is missing comes last
  return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(table, header) {
  const isDescending = header.getAttribute("aria-sort") === "ascending";
  const isNumber = header.dataset.sort === "number";
  const keyed = [...table.tBodies[0].rows].map((row) => [sortKey(row, header.cellIndex, isNumber), row]);
  const missing = (pair) => pair[0] === null;
  keyed.sort((a, b) => (isDescending && !missing(a) && !missing(b) ? compare(b[0], a[0]) : compare(a[0], b[0])));
  table.tBodies[0].append(...keyed.map((pair) => pair[1]));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
}

function makeSortable(table) {
  for (const header of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(table, header));
    header.replaceChildren(button);
  }
}

function makeFilterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 6) return;
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  input.type = "search";
  label.className = "filter";
  label.append("Filter ", input, " ", count);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      left += !row.hidden;
    });
    count.textContent = words.length ? `${left} of ${rows.length}` : "";
  });
  table.parentElement.before(label);
}

function makeZoomable(picture, dialog) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "zoom";
  button.textContent = "enlarge";
  button.addEventListener("click", () => {
    const close = document.createElement("button");
    close.textContent = "close";
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(picture.cloneNode(true), close);
    dialog.showModal();
  });
  picture.after(button);
}

function makeDownload(button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = document.getElementById("data").textContent;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "bnfold.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}

for (const table of document.querySelectorAll("table")) {
  makeSortable(table);
  makeFilterable(table);
}
const pictures = document.querySelectorAll("svg.graph");
if (pictures.length) {
  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  for (const picture of pictures) makeZoomable(picture, dialog);
}
makeDownload(document.getElementById("download"));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
