"use strict";
document.querySelectorAll("table.sortable").forEach(function (table) {
  table.querySelectorAll("th").forEach(function (head, column) {
    head.addEventListener("click", function () {
      var up = head.dataset.order !== "up";
      table.querySelectorAll("th").forEach(function (other) { delete other.dataset.order; });
      head.dataset.order = up ? "up" : "down";
      var body = table.tBodies[0];
      Array.from(body.rows)
        .map(function (row, index) { return { row: row, index: index, cell: row.cells[column] }; })
        .sort(function (a, b) {
          var x = a.cell.dataset.value, y = b.cell.dataset.value;
          var order = x !== undefined && y !== undefined
            ? Number(x) - Number(y)
            : a.cell.textContent.localeCompare(b.cell.textContent);
          return (up ? order : -order) || a.index - b.index;
        })
        .forEach(function (entry) { body.appendChild(entry.row); });
    });
  });
});
var toggle = document.getElementById("theme");
if (toggle) {
  toggle.addEventListener("click", function () {
    var root = document.documentElement;
    var dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
}
document.documentElement.dataset.script = "ran";
