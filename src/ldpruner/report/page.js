const data = JSON.parse(document.getElementById("data").textContent);
const parts = [...document.querySelectorAll(".operator, .mark[data-place]")];
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function show(plan) {
  const names = new Set(plan.gone);
  for (const part of parts) {
    const path = data.operators[Number(part.dataset.place)].name;
    let gone = names.has(path);
    for (let end = path.lastIndexOf("."); !gone && end > 0; end = path.lastIndexOf(".", end - 1)) {
      gone = names.has(path.slice(0, end));
    }
    part.classList.toggle("removed", gone);
  }
  const title = plan.budget === null ? "This run's plan" : `A plan for ${Math.round(100 * plan.budget)} % of the latency`;
  const { latency, parameters, macs, memory } = plan.left;
  document.getElementById("budget-text").textContent =
    `${title}: ${plan.removed.length} operators removed, with all that is in them. Predicted: latency ${percent(latency)}, parameters ${percent(parameters)}, ` +
    `MACs ${percent(macs)}, memory ${percent(memory)}, latent shift ${plan.shift.toPrecision(3)}.`;
}

function describe(event) {
  const shown = event.target.closest("[data-place]");
  if (!shown) return;
  const operator = data.operators[Number(shown.dataset.place)];
  const interval = operator.interval ? ` (${operator.interval.map((end) => end.toPrecision(3)).join(" to ")})` : "";
  let score = "not sampled, as it saves too little";
  if (operator.failure) score = `cannot be removed: ${operator.failure}`;
  else if (operator.score !== null) score = `score ${operator.score.toPrecision(3)}${interval}, of ${operator.samples} samples`;
  const state = shown.classList.contains("removed") ? "Removed. " : "";
  document.getElementById("operator-text").textContent =
    `${operator.name}, ${operator.type}. ${state}${operator.modification}: ${score}. ` +
    `Saves ${percent(operator.saves.latency)} of the latency and ${percent(operator.saves.parameters)} of the parameters.`;
}

for (const part of document.querySelectorAll("#operators, #importance-chart")) {
  part.addEventListener("pointerover", describe);
  part.addEventListener("focusin", describe);
}
const slider = document.getElementById("budget");
slider.addEventListener("input", () => {
  const plan = data.plans[Number(slider.value)];
  slider.setAttribute("aria-valuetext", `${Math.round(100 * plan.budget)} %`);
  show(plan);
});
document.getElementById("reset").addEventListener("click", () => show(data.plan));
show(data.plan);
