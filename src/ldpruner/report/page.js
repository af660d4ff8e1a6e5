"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const buttons = [...document.querySelectorAll(".operator")];
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function show(plan) {
  const removed = plan.removed.map((place) => data.operators[place].name);
  const names = new Set(removed);
  for (const button of buttons) {
    const path = button.dataset.path;
    let gone = names.has(path);
    for (let end = path.lastIndexOf("."); !gone && end > 0; end = path.lastIndexOf(".", end - 1)) {
      gone = names.has(path.slice(0, end));
    }
    button.classList.toggle("removed", gone);
  }
  const title = plan.budget === null ? "This run's plan" : `A plan for ${Math.round(100 * plan.budget)} % of the latency`;
  const { latency, parameters, macs, memory } = plan.left;
  document.getElementById("budget-text").textContent =
    `${title}: ${removed.length} operators removed. Predicted: latency ${percent(latency)}, parameters ${percent(parameters)}, ` +
    `MACs ${percent(macs)}, memory ${percent(memory)}, latent shift ${plan.shift.toPrecision(3)}.`;
}

function describe(event) {
  const button = event.target.closest(".operator");
  if (!button) return;
  const operator = data.operators[Number(button.dataset.place)];
  const interval = operator.interval ? ` (${operator.interval.map((end) => end.toPrecision(3)).join(" to ")})` : "";
  let score = "not sampled, as it saves too little";
  if (operator.failure) score = `cannot be removed: ${operator.failure}`;
  else if (operator.score !== null) score = `score ${operator.score.toPrecision(3)}${interval}, of ${operator.samples} samples`;
  const state = button.classList.contains("removed") ? "Removed. " : "";
  document.getElementById("operator-text").textContent =
    `${operator.name}, ${operator.type}. ${state}${operator.modification}: ${score}. ` +
    `Saves ${percent(operator.saves.latency)} of the latency and ${percent(operator.saves.parameters)} of the parameters.`;
}

const map = document.getElementById("operators");
map.addEventListener("pointerover", describe);
map.addEventListener("focusin", describe);
const slider = document.getElementById("budget");
slider.addEventListener("input", () => {
  const plan = data.plans[Number(slider.value)];
  slider.setAttribute("aria-valuetext", `${Math.round(100 * plan.budget)} %`);
  show(plan);
});
document.getElementById("reset").addEventListener("click", () => show(data.plan));
for (const split of document.querySelectorAll(".split")) {
  const pair = split.previousElementSibling;
  split.addEventListener("input", () => pair.style.setProperty("--split", `${split.value}%`));
}
show(data.plan);
