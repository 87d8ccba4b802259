"""The report's style sheet: light, dark and print.

Colours are Okabe and Ito's ("Color Universal Design", 2008), told apart by colour-blind readers;
the dark page takes the palette's lighter members, so that lines keep a contrast of 3:1 on both.
Print shows what is folded away on a screen, except data that a chart beside it shows.
"""

CSS = r"""
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --ink: #1c2024; --soft: #5b636b; --rule: #dfe2e5;
  --teacher: #009e73; --student: #0072b2; --baseline: #d55e00; --second: #cc79a7;
  --third: #8c6d1f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e8eaed; --soft: #a3abb3; --rule: #363c42;
    --teacher: #009e73; --student: #56b4e9; --baseline: #e69f00; --second: #cc79a7;
    --third: #f0e442;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
main, header, footer, nav { max-width: 60rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; }
h3 { font-size: 1rem; line-height: 1.4; margin: 0; overflow-wrap: anywhere; }
section { scroll-margin-top: -1.5rem; }
a { color: var(--student); }
:focus-visible { outline: 2px solid var(--student); outline-offset: 2px; border-radius: .2rem; }
p { margin: .5rem 0; max-width: 46rem; }
.eyebrow { color: var(--soft); font-size: .875rem; margin: 0 0 .25rem; }
.lead { font-size: 1.2rem; line-height: 1.5; max-width: 50rem; text-wrap: pretty; }
.note, figcaption p { color: var(--soft); font-size: .875rem; }
.contents { margin-top: 1.5rem; font-size: .9375rem; }
.contents ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; list-style: none; margin: 0;
  padding: .6rem 0; border-block: 1px solid var(--rule); }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem;
  list-style: none; padding: 0; margin: 1.75rem 0 0;
}
.tiles li, figure {
  background: var(--card); border: 1px solid var(--rule); border-radius: .6rem;
}
.tiles li { padding: .9rem 1rem; }
.tiles strong { display: block; font-size: 1.7rem; line-height: 1.2; font-weight: 650; }
.tiles span { color: var(--soft); font-size: .875rem; line-height: 1.35; display: block; }
figure { margin: 1rem 0; padding: 1rem; min-width: 0; }
figcaption { margin-bottom: .75rem; max-width: 46rem; }
figcaption p { margin: .15rem 0 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 1rem; }
.trio { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 0 1.5rem; }
.pair > .scroll > .shares { font-size: .8125rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .9375rem; }
caption { text-align: left; padding-bottom: .25rem; font-size: .875rem; font-weight: 600; }
th, td { padding: .4rem .75rem .4rem 0; border-bottom: 1px solid var(--rule); text-align: left; }
thead th { color: var(--soft); font-weight: 500; font-size: .875rem; white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
table.figures { width: 100%; }
table.figures td, table.figures thead th + th {
  text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap;
}
/* Few columns across a whole page would lie too far apart to be read as lines. */
table.figures:not(.shares, :has(th:nth-child(5))) { width: auto; min-width: min(100%, 30rem); }
table.shares td {
  background: color-mix(in srgb, var(--student) calc(.4 * var(--share)), transparent);
  padding-right: .6rem;
}
table.shares thead th + th { white-space: normal; vertical-align: bottom; padding-right: .6rem; }
table.words { width: 100%; font-size: .875rem; }
table.words :is(th, td) { overflow-wrap: anywhere; vertical-align: top; white-space: normal; }
table.words :is(th, td) { min-width: 7rem; }
table.facts { max-width: 100%; }
table.facts th { font-weight: 500; color: var(--soft); padding-right: 2rem; vertical-align: top; }
table.facts td { overflow-wrap: anywhere; }
/* After the slash: what is read out, nothing. */
th.teacher::before { content: "\25b2\a0" / ""; color: var(--teacher); }
th.student::before { content: "\25cf\a0" / ""; color: var(--student); }
th.baseline::before { content: "\25a0\a0" / ""; color: var(--baseline); }
.texts th { width: 7rem; text-align: left; vertical-align: top; }
.texts td {
  text-align: left; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .8125rem/1.5 ui-monospace, "Liberation Mono", monospace;
}
.spoken { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; width: fit-content; }
.data { margin: .5rem 0 0; font-size: .875rem; }
.data summary { color: var(--soft); font-weight: 400; }
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
.baseline { --tone: var(--baseline); --dash: 7 4; }
.second { --tone: var(--second); --dash: 9 3 2 3; }
.third { --tone: var(--third); --dash: 1 5; }
svg .series {
  fill: none; stroke: var(--tone); stroke-width: 2; stroke-dasharray: var(--dash);
  stroke-linejoin: round; stroke-linecap: round;
}
svg .series.faint { stroke-width: 1.5; opacity: .45; }
svg .series.thin { stroke-width: 1.25; }
svg .leader { stroke: var(--soft); }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg .mark.seed { fill: var(--card); stroke: var(--soft); stroke-width: 1.25; }
svg .mark { fill: var(--tone); stroke: var(--card); stroke-width: 1; }

@media print {
  :root {
    --page: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb;
    --teacher: #009e73; --student: #0072b2; --baseline: #d55e00; --second: #cc79a7;
    --third: #8c6d1f;
  }
  @page { margin: 16mm 14mm; }
  * { print-color-adjust: exact; }
  body { font-size: 10.5pt; }
  main, header, footer { max-width: none; padding: 0; }
  .contents, .data { display: none; }
  h2 { margin-top: 1.5rem; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, .tiles { break-inside: avoid; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); }
  .scroll, pre { overflow: visible; }
  figure > .scroll > svg, figure svg[width="720"] { min-width: 0; }
  table { font-size: 8.5pt; }
  caption { font-size: 9pt; }
  table.figures :is(td, thead th + th, th) { white-space: normal; padding: .25rem .25rem .25rem 0; }
  table.figures :is(td, th) { font-size: 8pt; }
  table.figures tbody th { overflow-wrap: anywhere; min-width: 4.5rem; }
  .pair:not(:has(.shares)) { grid-template-columns: repeat(2, 1fr); }
  .trio { grid-template-columns: repeat(3, 1fr); }
  details::details-content { content-visibility: visible; block-size: auto; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 8pt; }
}
"""
