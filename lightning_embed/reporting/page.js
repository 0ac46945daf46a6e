"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const safe = (text) => text.replace(/[<>&]/g, (sign) => ({ "<": "&lt;", ">": "&gt;", "&": "&amp;" })[sign]);

  function layout(chart, width) {
    const ink = color("--ink"), line = color("--line"), narrow = width < 560;
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, automargin: true };
    const entries = chart.traces.filter((one) => one.legend).length;
    const shapes = chart.shades.map(([x0, x1]) => ({
      type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, fillcolor: color("--shade"), line: { width: 0 }, layer: "below",
    })).concat(chart.marks.map((mark) => ({
      type: "line", xref: "x", yref: "paper", x0: mark.step, x1: mark.step, y0: 0, y1: 1,
      line: { color: color("--gone"), width: 1, dash: "dot" }, layer: "below",
    })));
    const annotations = [];
    if (chart.threshold !== null) {
      shapes.push({ type: "line", xref: "paper", yref: "y", x0: 0, x1: 1, y0: chart.threshold, y1: chart.threshold, line: { color: ink, width: 1.2, dash: "dash" } });
      annotations.push({ xref: "paper", yref: "y", x: 1, y: chart.threshold, text: "threshold " + chart.threshold, showarrow: false, xanchor: "right", yanchor: "top", font: { size: 11 } });
    }
    const below = narrow || entries > 14;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12.5 },
      margin: { l: narrow ? 44 : 60, r: 12, t: 24, b: 44 },
      xaxis: { ...axis, title: { text: "step", standoff: 6 }, range: [-0.01 * chart.last, 1.02 * chart.last] },
      yaxis: { ...axis, title: { text: chart.unit, standoff: 8 }, type: chart.log ? "log" : "linear", ...(chart.range ? { range: chart.range } : {}), ...(chart.log ? { dtick: 1, exponentformat: "power" } : {}) },
      legend: below ? { orientation: "h", x: 0, y: -0.22, yanchor: "top", font: { size: 11 } } : { x: 1.01, y: 1, font: { size: 12 } },
      showlegend: entries > 1, hovermode: "closest", shapes, annotations,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: ink },
      hoverlabel: { bgcolor: color("--card"), bordercolor: line, font: { color: ink }, namelength: 40 },
      transition: { duration: still ? 0 : undefined },
    };
  }

  function traces(chart) {
    const shown = chart.traces.map((one) => ({
      type: "scatter", mode: one.marker ? "lines+markers" : "lines", name: safe(one.name), x: one.x, y: one.y, showlegend: one.legend,
      line: { color: dark.matches && !matchMedia("print").matches ? one.dark : one.light, width: one.width, dash: one.dash, shape: one.steps ? "hv" : "linear" },
      marker: { symbol: one.marker, size: 6, maxdisplayed: 14 }, connectgaps: false,
      hovertemplate: "<b>" + safe(one.name) + "</b><br>step %{x:,}: %{y:.5g}<extra></extra>",
    }));
    if (chart.marks.length) {
      shown.push({
        type: "scatter", mode: "markers", name: "merges", x: chart.marks.map((mark) => mark.step), y: chart.marks.map(() => 0.98), yaxis: "y2", showlegend: chart.traces.filter((one) => one.legend).length > 1,
        marker: { symbol: "triangle-down", size: 11, color: color("--gone") }, cliponaxis: false,
        text: chart.marks.map((mark) => safe(mark.text).replace(/\n/g, "<br>")), hovertemplate: "%{text}<extra></extra>",
      });
    }
    return shown;
  }

  function draw(chart, element) {
    element.dataset.drawn = "true";
    const plan = layout(chart, element.clientWidth);
    if (chart.marks.length) plan.yaxis2 = { overlaying: "y", range: [0, 1], visible: false, fixedrange: true };
    return Plotly.react(element, traces(chart), plan, {
      displaylogo: false, responsive: true, displayModeBar: "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    });
  }
  // a chart is drawn when it comes near the window, so that a long page opens at once
  const places = new Map(charts.map((chart) => [document.getElementById(chart.id), chart]));
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        near.unobserve(entry.target);
        draw(places.get(entry.target), entry.target);
      }
    }
  }, { rootMargin: "400px" });
  const again = () => places.forEach((chart, element) => element.dataset.drawn && draw(chart, element));
  const all = () => places.forEach((chart, element) => draw(chart, element));
  places.forEach((chart, element) => near.observe(element));
  dark.addEventListener("change", again);
  addEventListener("beforeprint", all);
  addEventListener("afterprint", again);
  let width = innerWidth;
  addEventListener("resize", () => {
    if ((width < 560) !== (innerWidth < 560)) again();
    width = innerWidth;
  });
})();
