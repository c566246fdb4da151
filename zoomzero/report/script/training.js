// Trainings: curves over steps, and sampled responses token by token.

const SEGMENTS = ["rest", "answer", "span"];
const trainings = data.trainings;

function seriesOf(names, dashed = false) {
  return trainings.flatMap((training, run) => names.map(([name, text], place) => ({
    name: trainings.length > 1 ? `${training.name}: ${text}` : text, points: training.series[name] || [],
    colour: colour(place), dashed: trainings.length > 1 && run === 0,
  }))).filter((one) => one.points.length);
}

function curveCard(title, note, names, range) {
  const series = seriesOf(names);
  return series.length ? card(title, note, curves(title, series, range)) : null;
}

// The zoom reward minus the answer reward, step by step: what looking again adds.
function zoomGain() {
  const series = trainings.map((training, run) => {
    const coarse = new Map(training.series["rewards/answer/mean"] || []);
    const points = (training.series["rewards/zoom/mean"] || []).filter(([step]) => coarse.has(step)).map(([step, value]) => [step, value - coarse.get(step)]);
    return {name: trainings.length > 1 ? training.name : "zoom minus coarse", points, colour: colour(run)};
  }).filter((one) => one.points.length);
  return series.length ? card("Zoom minus coarse accuracy", "What looking again adds, of the sampled responses.", curves("Zoom minus coarse accuracy", series, {low: 0})) : null;
}

const bySegment = (name) => [[name, "all tokens"], ...SEGMENTS.map((segment) => [`${name}/${segment}`, segment])];

function tokens(response, strongest) {
  return make("p.tokens", {}, response.tokens.map((text, place) => {
    const advantage = response.advantages[place], segment = SEGMENTS[response.segments[place]] || "rest";
    const strength = Math.round(70 * Math.min(1, Math.abs(advantage) / strongest));
    return make(`span.${segment}`, {title: `${segment}, advantage ${fixed(advantage)}`, "--tint": advantage >= 0 ? "var(--up)" : "var(--down)", "--strength": `${strength}%`}, text);
  }));
}

function sampledStep(sample) {
  const strongest = Math.max(1e-9, ...sample.responses.flatMap((response) => response.advantages.map(Math.abs)));
  return make("div", {}, make("p", {}, make("b", {}, sample.question), make("span.soft", {}, ` right: ${sample.answer}${sample.spans.length ? `, evidence ${spanText(sample.spans)}` : ""}`)),
    sample.responses.map((response) => make("div.response", {}, make("div.rewards", {}, Object.entries(response.rewards).map(([name, value]) =>
      make("span", {}, make("small.soft", {}, name), make("b", {}, fixed(value))))), tokens(response, strongest))));
}

function samplesCard(training) {
  if (!training.samples.length) return null;
  const holder = make("div");
  const name = make("b", {"aria-live": "polite"});
  const show = (place) => { name.textContent = `step ${training.samples[place].step}`; holder.replaceChildren(sampledStep(training.samples[place])); };
  const slider = make("input", {type: "range", min: 0, max: training.samples.length - 1, value: training.samples.length - 1, "aria-label": "Sampled step", oninput: () => show(Number(slider.value))});
  show(training.samples.length - 1);
  const legend = make("div.legend", {}, make("span.key", {"--tint": "var(--up)"}, make("i", {"aria-hidden": "true"}), "advantage above 0"), make("span.key", {"--tint": "var(--down)"}, make("i", {"aria-hidden": "true"}), "below 0"),
    make("span.tokens", {}, make("span.answer", {}, "answer"), " ", make("span.span", {}, "span"), " ", make("span.rest", {}, "rest")));
  return card(trainings.length > 1 ? `Sampled responses: ${training.name}` : "Sampled responses", "One question's responses at a time. A token's shade is its advantage, its line the segment it belongs to: each reward reaches the tokens that earned it.",
    make("div.slider", {}, slider, name), legend, holder);
}

function trainingView() {
  return make("div.summary", {}, make("div.grid", {},
    curveCard("Rewards by kind", "Means over the responses of a step.", [["rewards/format/mean", "format"], ["rewards/iou/mean", "span IoU"], ["rewards/answer/mean", "answer"], ["rewards/zoom/mean", "zoom"]], {low: 0, high: 1}),
    zoomGain(), curveCard("Entropy by segment", "Nats a token.", bySegment("entropy"), {low: 0}),
    curveCard("Clip fraction by segment", "Share of the tokens whose ratio was clipped.", bySegment("clip_ratio/region_mean"), {low: 0}),
    curveCard("Total reward", null, [["reward", "reward"], ["reward_std", "its spread"]], {low: 0}),
    curveCard("Length of responses", "Tokens.", [["completions/mean_length", "mean"], ["completions/max_length", "longest"]], {low: 0})),
  trainings.map(samplesCard));
}
