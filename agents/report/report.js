"use strict";
(() => {
  const tip = document.getElementById("tip");
  let hot = null;

  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
    const below = y + 20 + box.height < innerHeight;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.max(8, below ? y + 18 : y - box.height - 12) + "px";
  };
  const hide = () => {
    tip.hidden = true;
    if (hot) hot.classList.remove("hot");
    hot = null;
  };

  const describe = (span) => {
    const [id, logprob, advantage] = span.dataset.t.split(",");
    const lines = [JSON.stringify(span.textContent), "id " + id];
    if (logprob !== undefined) lines.push("logprob " + logprob);
    else lines.push("not sampled by the policy");
    if (advantage !== undefined) lines.push("advantage " + advantage);
    return lines.join("\n");
  };

  const chartAt = (svg, clientX) => {
    const chart = svg.chart || (svg.chart = JSON.parse(svg.dataset.chart));
    const box = svg.getBoundingClientRect();
    const unit = box.width / svg.viewBox.baseVal.width;
    const x = ((clientX - box.left) / unit - chart.left) / (chart.right - chart.left) * chart.span;
    const nearest = (list) => list.reduce((best, p) =>
      best && Math.abs(best[0] - x) <= Math.abs(p[0] - x) ? best : p, null);
    const point = nearest(chart.points);
    const interval = nearest(chart.intervals);
    const at = point ? point[0] : interval[0];
    const lines = ["iteration " + at];
    if (point) lines.push(String(point[1]));
    if (interval && (!point || Math.abs(interval[0] - at) <= chart.span / 40))
      lines.push("evaluation at " + interval[0] + ": " + interval[1]);
    const cursor = svg.querySelector(".cursor");
    const right = chart.left + (chart.right - chart.left) * at / chart.span;
    cursor.setAttribute("x1", right);
    cursor.setAttribute("x2", right);
    cursor.classList.add("on");
    return lines.join("\n");
  };

  const point = (event) => {
    const svg = event.target.closest("svg[data-chart]");
    for (const line of document.querySelectorAll(".cursor.on")) line.classList.remove("on");
    if (svg) return show(chartAt(svg, event.clientX), event.clientX, event.clientY);
    const span = event.target.closest("span[data-t]");
    if (!span) return hide();
    if (span !== hot) {
      if (hot) hot.classList.remove("hot");
      hot = span;
      span.classList.add("hot");
    }
    show(describe(span), event.clientX, event.clientY);
  };
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("scroll", hide, { passive: true });
  document.addEventListener("pointerleave", hide);

  const episodes = [...document.querySelectorAll(".episode")];
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { filter, fold } = button.dataset;
    if (fold !== undefined) {
      for (const episode of episodes) episode.open = fold === "open" && !episode.hidden;
      return;
    }
    for (const other of document.querySelectorAll("button[data-filter]"))
      other.setAttribute("aria-pressed", String(other === button));
    for (const episode of episodes)
      episode.hidden = filter !== "all" && episode.dataset.kind !== filter;
    for (const group of document.querySelectorAll(".group"))
      group.hidden = !group.querySelector(".episode:not([hidden])");
  });
})();
