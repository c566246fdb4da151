// Figures as SVG: dots with intervals, bars, points and curves. All take plain numbers and give one element.

const WIDTH = 520;

function chart(label, height, ...children) {
  return draw("svg.chart", {viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label}, ...children);
}

const label = (x, y, text, anchor = "start", kind = "text.tick") => draw(kind, {x, y, "text-anchor": anchor}, text);
const line = (x1, y1, x2, y2, kind = "line.grid") => draw(kind, {x1, y1, x2, y2});
const titled = (element, text) => (element.append(draw("title", {}, text)), element);

// Round numbers that divide [low, high] into about `count` parts.
function ticks(low, high, count = 4) {
  const rough = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).find((value) => value >= rough * 0.999);
  const marks = [];
  for (let mark = Math.ceil(low / step - 1e-9) * step; mark <= high + step * 1e-6; mark += step) marks.push(Number(mark.toPrecision(12)));
  return marks;
}

// rows: [{name, value, low, high, note, colour}] with values in [0, 1].
function dots(title, rows) {
  const longest = Math.max(...rows.map((row) => row.name.length));
  const left = Math.min(215, Math.max(110, 7.2 * longest + 16)), right = WIDTH - 62, rowHeight = 27, height = rows.length * rowHeight + 24;
  const x = (value) => left + (right - left) * value;
  const parts = [0, 0.25, 0.5, 0.75, 1].map((mark) => [
    line(x(mark), 0, x(mark), height - 20), label(x(mark), height - 6, `${100 * mark}`, "middle"),
  ]);
  rows.forEach((row, place) => {
    const y = place * rowHeight + 15;
    const name = row.name.length > 27 ? `${row.name.slice(0, 26)}…` : row.name;
    parts.push(titled(label(left - 12, y + 4, name, "end", "text.name"), row.note ? `${row.name}: ${row.note}` : row.name));
    if (isNumber(row.low)) parts.push(draw("line.interval", {x1: x(row.low), x2: x(row.high), y1: y, y2: y, style: {stroke: row.colour}}));
    const range = isNumber(row.low) ? ` (95 %: ${percent(row.low)} to ${percent(row.high)})` : "";
    parts.push(titled(draw("circle", {cx: x(row.value), cy: y, r: 5, style: {fill: row.colour}}), `${row.name}: ${percent(row.value)}${range}`));
    parts.push(label(WIDTH, y + 4, percent(row.value), "end", "text.value"));
  });
  return chart(`${title}: ${rows.map((row) => `${row.name} ${percent(row.value)}`).join(", ")}`, height, parts);
}

// series: [{name, counts, colour}], the counts of equal tenths of [0, 1].
function histogram(title, series) {
  const left = 40, right = WIDTH - 8, bottom = 158, top = 10;
  const highest = Math.max(1, ...series.flatMap((one) => one.counts));
  const y = (value) => bottom - (bottom - top) * value / highest;
  const slot = (right - left) / 10, bar = (slot - 6) / series.length;
  const parts = ticks(0, highest, 3).map((mark) => [line(left, y(mark), right, y(mark)), label(left - 8, y(mark) + 4, short(mark), "end")]);
  for (let edge = 0; edge <= 10; edge += 2) parts.push(label(left + slot * edge, bottom + 18, fixed(edge / 10, 1), "middle"));
  series.forEach((one, place) => one.counts.forEach((count, bin) => {
    const box = {x: left + slot * bin + 3 + bar * place, y: y(count), width: bar - 1, height: bottom - y(count), rx: 2, style: {fill: one.colour}};
    parts.push(titled(draw("rect", box), `${one.name}: ${plural(count, "question")} from ${bin / 10} to ${(bin + 1) / 10}`));
  }));
  return chart(title, 182, parts);
}

// Points with an interval upwards: [{name, x, y, low, high, colour, hollow}]; y in [0, 1], lines join points of a group.
function scatter(title, groups, unit) {
  const left = 40, right = WIDTH - 16, bottom = 178, top = 10;
  const points = groups.flat();
  const most = Math.max(...points.map((point) => point.x)) * 1.15 || 1;
  const x = (value) => left + (right - left) * value / most, y = (value) => bottom - (bottom - top) * value;
  const parts = [0, 0.25, 0.5, 0.75, 1].map((mark) => [line(left, y(mark), right, y(mark)), label(left - 8, y(mark) + 4, `${100 * mark}`, "end")]);
  ticks(0, most, 4).forEach((mark) => parts.push(label(x(mark), bottom + 18, short(mark), "middle")));
  parts.push(label(right, bottom + 36, unit, "end"));
  for (const group of groups) {
    parts.push(draw("polyline.joined", {points: group.map((point) => `${x(point.x)},${y(point.y)}`).join(" "), style: {stroke: group[0].colour}}));
    for (const point of group) {
      if (isNumber(point.low)) parts.push(draw("line.interval", {x1: x(point.x), x2: x(point.x), y1: y(point.low), y2: y(point.high), style: {stroke: point.colour}}));
      const style = {fill: point.hollow ? "var(--card)" : point.colour, stroke: point.colour};
      parts.push(titled(draw("circle.point", {cx: x(point.x), cy: y(point.y), r: 5.5, style}), `${point.name}: ${percent(point.y)} at ${short(point.x)} ${unit}`));
    }
  }
  return chart(title, 220, parts);
}

// series: [{name, points: [{confidence, accuracy, count}], colour}]
function reliability(title, series) {
  const left = 40, right = WIDTH - 16, bottom = 178, top = 10;
  const x = (value) => left + (right - left) * value, y = (value) => bottom - (bottom - top) * value;
  const parts = [0, 0.25, 0.5, 0.75, 1].map((mark) => [
    line(left, y(mark), right, y(mark)), label(left - 8, y(mark) + 4, `${100 * mark}`, "end"), label(x(mark), bottom + 18, `${100 * mark}`, "middle"),
  ]);
  parts.push(line(x(0), y(0), x(1), y(1), "line.ideal"), label(right, bottom + 36, "confidence, %", "end"));
  for (const one of series) {
    const most = Math.max(...one.points.map((point) => point.count));
    parts.push(draw("polyline.joined", {points: one.points.map((point) => `${x(point.confidence)},${y(point.accuracy)}`).join(" "), style: {stroke: one.colour}}));
    for (const point of one.points) {
      const box = {cx: x(point.confidence), cy: y(point.accuracy), r: 3 + 7 * Math.sqrt(point.count / most), style: {fill: one.colour}};
      parts.push(titled(draw("circle.bubble", box), `${one.name}: ${plural(point.count, "answer")} with confidence ${percent(point.confidence)}, ${percent(point.accuracy)} right`));
    }
  }
  return chart(title, 220, parts);
}

// series: [{name, points: [[step, value]], colour, dashed}]: every value faint, the running mean strong; values under the pointer.
function curves(title, series, {low = null, high = null} = {}) {
  const left = 46, right = WIDTH - 8, bottom = 158, top = 10;
  const values = series.flatMap((one) => one.points.map((point) => point[1]));
  const steps = series.flatMap((one) => one.points.map((point) => point[0]));
  let least = Math.min(low ?? Infinity, ...values), most = Math.max(high ?? -Infinity, ...values);
  if (least === most) [least, most] = low === least ? [least, least + 1] : [least - 0.5, most + 0.5];
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const x = (step) => left + (right - left) * (step - first) / (last - first || 1);
  const y = (value) => bottom - (bottom - top) * (value - least) / (most - least);
  const parts = ticks(least, most, 3).map((mark) => [line(left, y(mark), right, y(mark)), label(left - 8, y(mark) + 4, short(mark), "end")]);
  ticks(first, last, 5).filter(Number.isInteger).forEach((mark) => parts.push(label(x(mark), bottom + 18, short(mark), "middle")));
  const path = (points) => points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const smooth = series.map((one) => running(one.points));
  series.forEach((one, place) => {
    const style = {stroke: one.colour, strokeDasharray: one.dashed ? "5 4" : null};
    parts.push(draw("polyline.raw", {points: path(one.points), style}), draw("polyline.mean", {points: path(smooth[place]), style}));
  });
  const cursor = line(0, top, 0, bottom, "line.cursor");
  const figure = chart(`${title}: ${series.map((one) => `${one.name} from ${fixed(one.points[0][1])} to ${fixed(one.points.at(-1)[1])}`).join(", ")}`, 182, parts, cursor);
  const legend = make("div.legend", {}, series.map((one) => key(one.name, one.colour, one.dashed)));
  const shown = make("span.soft.readout", {"aria-hidden": "true"}, "");
  legend.append(shown);
  figure.addEventListener("pointermove", (event) => {
    const box = figure.getBoundingClientRect();
    const step = first + (last - first) * ((event.clientX - box.left) * WIDTH / box.width - left) / (right - left);
    const near = (points) => points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));
    const at = near(series[0].points)[0];
    cursor.setAttribute("x1", x(at));
    cursor.setAttribute("x2", x(at));
    figure.classList.add("pointed");
    shown.textContent = `step ${at}: ${smooth.map((points) => short(near(points)[1])).join(" · ")}`;
  });
  figure.addEventListener("pointerleave", () => { figure.classList.remove("pointed"); shown.textContent = ""; });
  return make("div", {}, legend, figure);
}

function running(points, window = Math.max(1, Math.round(points.length / 12))) {
  return points.map(([step], place) => {
    const part = points.slice(Math.max(0, place - window + 1), place + 1);
    return [step, part.reduce((sum, point) => sum + point[1], 0) / part.length];
  });
}

const key = (name, tint, dashed) => make("span.key", {"--tint": tint}, make(dashed ? "i.dashed" : "i", {"aria-hidden": "true"}), name);

function card(title, note, ...children) {
  return make("section.card", {}, make("h2", {}, title), note ? make("p.soft", {}, note) : null, ...children);
}
