"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  root.classList.add("script");

  const theme = byId("theme");
  let dark = matchMedia("(prefers-color-scheme: dark)").matches;
  theme.setAttribute("aria-pressed", String(dark));
  theme.addEventListener("click", () => {
    dark = !dark;
    root.dataset.theme = dark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(dark));
  });

  for (const button of document.querySelectorAll("button.more")) {
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-expanded") !== "true";
      button.setAttribute("aria-expanded", String(open));
      byId(button.getAttribute("aria-controls")).classList.toggle("open", open);
    });
  }

  const table = byId("tensor-table");
  if (!table) return;
  const rows = [...table.tBodies];
  rows.forEach((row, at) => {
    row.rank = at;
    row.label = row.querySelector(".name").textContent;
  });
  const [filter, sort, flagged, shown] = ["filter", "sort", "flagged", "shown"].map(byId);
  const select = () => {
    const text = filter.value.toLowerCase();
    let count = 0;
    for (const row of rows) {
      const fits = row.label.toLowerCase().includes(text) && (!flagged.checked || row.classList.contains("flagged"));
      row.hidden = !fits;
      count += fits ? 1 : 0;
    }
    shown.textContent = `${count} of ${rows.length}`;
  };
  const order = {
    rank: (a, b) => a.rank - b.rank,
    name: (a, b) => (a.label < b.label ? -1 : a.label > b.label ? 1 : 0),
  };
  for (const key of ["norm", "growth", "update"]) {
    order[key] = (a, b) => b.dataset[key] - a.dataset[key] || a.rank - b.rank;
  }
  filter.addEventListener("input", select);
  flagged.addEventListener("change", select);
  sort.addEventListener("change", () => table.append(...rows.sort(order[sort.value])));
  select();
})();
