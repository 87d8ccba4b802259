"""The report's style sheet: light, dark and print.

Colours are Okabe and Ito's ("Color Universal Design", 2008), told apart by colour-blind readers;
the dark page takes the palette's lighter members, so that lines keep a contrast of 3:1 on both.
"""

CSS = r"""
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --ink: #1c2024; --soft: #5b636b; --rule: #dfe2e5;
  --teacher: #009e73; --student: #0072b2; --control: #d55e00; --second: #cc79a7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e8eaed; --soft: #a3abb3; --rule: #363c42;
    --teacher: #009e73; --student: #56b4e9; --control: #e69f00; --second: #cc79a7;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main, header, footer { max-width: 60rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.eyebrow { color: var(--soft); font-size: .875rem; margin: 0 0 .25rem; }
.lead { font-size: 1.2rem; line-height: 1.5; }
.note, figcaption, caption { color: var(--soft); font-size: .875rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem;
  list-style: none; padding: 0; margin: 1.75rem 0 0;
}
.tiles li, figure {
  background: var(--card); border: 1px solid var(--rule); border-radius: .6rem;
}
.tiles li { padding: .9rem 1rem; }
figcaption strong { color: var(--ink); font-weight: 600; }
.tiles strong { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 650; }
.tiles span { color: var(--soft); font-size: .875rem; line-height: 1.35; display: block; }
figure { margin: 1rem 0; padding: 1rem; min-width: 0; }
figcaption { margin-bottom: .75rem; max-width: 46rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 1rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--student); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; margin: .75rem 0; font-size: .9375rem; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--rule); text-align: left; }
thead th { color: var(--soft); font-weight: 500; font-size: .875rem; white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
table.figures td, table.figures thead th + th {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
}
table.facts { width: auto; min-width: 20rem; }
table.facts th { font-weight: 500; color: var(--soft); padding-right: 2rem; vertical-align: top; }
table.facts td { overflow-wrap: anywhere; }
.texts th { width: 7rem; text-align: left; vertical-align: top; }
.texts td {
  text-align: left; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8125rem/1.5 ui-monospace, "Liberation Mono", monospace;
}
th.teacher::before { content: "\25b2\a0"; color: var(--teacher); }
th.student::before { content: "\25cf\a0"; color: var(--student); }
th.control::before { content: "\25a0\a0"; color: var(--control); }
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre {
  overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: .6rem;
  padding: 1rem; font: .8125rem/1.5 ui-monospace, "Liberation Mono", monospace;
}
footer { margin: 3rem auto 2rem; color: var(--soft); font-size: .875rem; }

svg { display: block; width: 100%; height: auto; font-size: 12px; }
figure > .scroll > svg { min-width: 20rem; }
figure svg[width="720"] { min-width: 36rem; }
figure svg[width="376"] { max-width: 26rem; }
svg text { fill: var(--ink); }
svg .tick, svg .label { fill: var(--soft); }
svg .tick { font-variant-numeric: tabular-nums; }
svg .strong { font-weight: 600; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--soft); }
svg .diagonal { stroke: var(--soft); stroke-dasharray: 2 4; }
svg .bar { fill: var(--student); }
svg .track { stroke: var(--rule); stroke-width: 6; stroke-linecap: round; }
svg .filled { stroke: var(--student); stroke-width: 6; stroke-linecap: round; }
.teacher { --tone: var(--teacher); --dash: 2 4; }
.student { --tone: var(--student); --dash: none; }
.control { --tone: var(--control); --dash: 7 4; }
.second { --tone: var(--second); --dash: 9 3 2 3; }
svg .series {
  fill: none; stroke: var(--tone); stroke-width: 2; stroke-dasharray: var(--dash);
  stroke-linejoin: round; stroke-linecap: round;
}
svg .series.faint { stroke-width: 1.5; opacity: .45; }
svg .series.thin { stroke-width: 1.25; }
svg .mark { fill: var(--tone); stroke: var(--card); stroke-width: 1; }

@media print {
  :root {
    --page: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb;
    --teacher: #009e73; --student: #0072b2; --control: #d55e00; --second: #cc79a7;
  }
  body { font-size: 10.5pt; }
  header { padding-top: 0; }
  h2, h3 { break-after: avoid; }
  figure, table, .tiles { break-inside: avoid; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; }
}
"""
