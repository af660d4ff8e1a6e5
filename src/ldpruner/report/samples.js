"use strict";
for (const split of document.querySelectorAll(".split")) {
  const pair = split.previousElementSibling;
  split.addEventListener("input", () => pair.style.setProperty("--split", `${split.value}%`));
}
for (const choice of document.querySelectorAll(".choice input")) {
  choice.addEventListener("change", () => {
    for (const image of document.querySelectorAll(".over")) image.hidden = image.dataset.stage !== choice.value;
    for (const name of document.querySelectorAll("figcaption .stage")) name.textContent = choice.value;
  });
}
