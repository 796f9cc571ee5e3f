"use strict";
(() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
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
      const details = byId(button.getAttribute("aria-controls"));
      const cell = details.cells[0];
      // Of many tensors, the details are in comments.
      if (cell.firstChild.nodeType === Node.COMMENT_NODE) cell.innerHTML = cell.firstChild.data;
      button.setAttribute("aria-expanded", String(open));
      details.classList.toggle("open", open);
    });
  }

  const table = byId("tensor-table");
  if (!table) return;
  const rows = [...table.tBodies];
  rows.forEach((row, at) => {
    row.rank = at;
    row.label = row.querySelector(".name").textContent;
  });
  const [filter, sort, flagged, shown, all] = ["filter", "sort", "flagged", "shown", "all"].map(byId);
  let order = rows;
  const later = rows.findIndex((row) => row.classList.contains("later"));
  let most = later < 0 ? Infinity : later;
  const select = () => {
    const text = filter.value.toLowerCase();
    let fitting = 0;
    for (const row of order) {
      const fits = row.label.toLowerCase().includes(text) && (!flagged.checked || row.classList.contains("flagged"));
      fitting += fits ? 1 : 0;
      row.hidden = !fits || fitting > most;
      row.classList.remove("later");
    }
    shown.textContent = `${Math.min(fitting, most)} of ${rows.length}`;
    all.hidden = fitting <= most;
  };
  const compare = {
    rank: (a, b) => a.rank - b.rank,
    name: (a, b) => (a.label < b.label ? -1 : a.label > b.label ? 1 : 0),
  };
  for (const key of ["norm", "growth", "update"]) {
    compare[key] = (a, b) => b.dataset[key] - a.dataset[key] || a.rank - b.rank;
  }
  filter.addEventListener("input", select);
  flagged.addEventListener("change", select);
  sort.addEventListener("change", () => {
    order = [...rows].sort(compare[sort.value]);
    table.append(...order);
    select();
  });
  all.addEventListener("click", () => {
    most = Infinity;
    select();
  });
  select();
})();
