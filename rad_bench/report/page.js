"use strict";
// Tables: a click on a heading sorts the rows within each task. Numbers sort by their mean: "20.8 [18.9, 22.7]" as 20.8.
const number = text => {
  const match = /^[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?/i.exec(text);
  const units = { bytes: 1, kB: 1e3, MB: 1e6, GB: 1e9 };
  if (!match) return NaN;
  return parseFloat(match[0].replaceAll(",", "")) * (units[text.slice(match[0].length).trim().split(" ")[0]] ?? 1);
};
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const texts = column => [...table.tBodies].flatMap(body => [...body.rows].map(row => row.cells[column].textContent.trim()));
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const filled = texts(column).filter(Boolean);
      const numeric = column > 0 && 2 * filled.filter(text => !isNaN(number(text))).length > filled.length;
      const before = heading.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numeric; // numbers: the largest first
      headings.forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => {
        if (!numeric) return a.localeCompare(b, "en", { numeric: true }) * (up ? 1 : -1);
        const [x, y] = [number(a), number(b)];
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : (x - y) * (up ? 1 : -1); // texts that are not numbers come last
      };
      for (const body of table.tBodies)
        body.append(...[...body.rows].sort((a, b) => compare(...[a, b].map(row => row.cells[column].textContent.trim()))));
    });
  });
}
// Films: play the frames of the strips below, in step for truth and every block.
for (const films of document.querySelectorAll(".films")) {
  const strips = [...films.parentElement.querySelectorAll(".strips img")];
  const shown = films.dataset.frames.split(" ").map(entry => entry.split(":"));
  const [button, slider, label] = [films.querySelector("button"), films.querySelector("input"), films.querySelector("output")];
  const canvases = strips.map(strip => {
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [(strip.naturalWidth + 1) / shown.length - 1, strip.naturalHeight];
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `film of ${strip.alt}`);
    caption.textContent = strip.dataset.label;
    figure.append(canvas, caption);
    films.querySelector(".screen").append(figure);
    return canvas;
  });
  const draw = () => {
    const place = Number(slider.value);
    canvases.forEach((canvas, i) =>
      canvas.getContext("2d").drawImage(strips[i], -place * (canvas.width + 1), 0));
    label.textContent = `frame ${shown[place][0]}, ${shown[place][1]}`;
    films.querySelector(".mark").className = `mark ${shown[place][1]}`;
  };
  let timer = 0;
  const play = on => {
    clearInterval(timer);
    timer = on ? setInterval(() => { slider.value = (Number(slider.value) + 1) % shown.length; draw(); }, 300) : 0;
    button.textContent = on ? "pause" : "play";
  };
  button.addEventListener("click", () => play(!timer));
  slider.addEventListener("input", () => { play(false); draw(); });
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  films.hidden = false;
  Promise.all(strips.map(strip => strip.decode())).then(draw);
  if (!still) // play only while visible
    new IntersectionObserver(entries => entries.forEach(entry => { if (!films.dataset.paused) play(entry.isIntersecting); }))
      .observe(films);
  button.addEventListener("click", () => { films.dataset.paused = timer ? "" : "yes"; });
  slider.addEventListener("input", () => { films.dataset.paused = "yes"; });
}
