"""The style sheet of the report, in addition to the common one; safe for colour-blind readers."""

STYLE = """
:root { --c0: #1f5fd0; --c1: #c4560b; --c2: #0b7a5c; --c3: #8b3fb0; --c4: #7d6408;
  --c5: #c22f55; --c6: #5f6670;
  --found: #0b7a5c; --poor: #6fae9a; --wrong: #b85f12; --none: #69717a }
@media (prefers-color-scheme: dark) {
  :root { --c0: #7fb0ff; --c1: #f7a35c; --c2: #4fd0a6; --c3: #cf9bea; --c4: #e0c44a;
    --c5: #ff8fab; --c6: #aeb6bf;
    --found: #2f9e7c; --poor: #7dc2ac; --wrong: #e58f45; --none: #7b848d }
}
.c0 { --own: var(--c0) } .c1 { --own: var(--c1) } .c2 { --own: var(--c2) }
.c3 { --own: var(--c3) } .c4 { --own: var(--c4) } .c5 { --own: var(--c5) }
.c6 { --own: var(--c6) }
.found { --own: var(--found) } .poor { --own: var(--poor) }
.wrong { --own: var(--wrong) } .none { --own: var(--none) }
header { border-bottom: 1px solid var(--line); padding-bottom: 1rem }
.about { color: var(--quiet); margin: 0 }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem }
nav ul { list-style: none; margin: .8rem 0 0; padding: 0 }
nav a { display: inline-block; padding: .2rem 0 }
.tiles { display: grid; gap: .9rem; list-style: none; margin: 1.25rem 0; padding: 0 }
.tiles { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)) }
.tiles li, .chart { background: var(--card); border: 1px solid var(--line) }
.tiles li, .chart { border-radius: .5rem; padding: .8rem 1rem }
.tiles b { display: block; font-size: clamp(1.35rem, 5vw, 1.9rem); white-space: nowrap }
.tiles b { font-variant-numeric: tabular-nums; font-weight: 650; line-height: 1.25 }
.tiles span { color: var(--quiet); display: block; font-size: .85rem }
.note { background: var(--card); border-left: 4px solid var(--wrong); margin: .8rem 0 }
.note { max-width: none; padding: .6rem .9rem }
.charts { align-items: stretch; display: grid; gap: 1.1rem; margin: 1rem 0 }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
.chart h3 { margin: 0 0 .3rem }
.chart svg { display: block; height: auto; margin: .4rem 0; overflow: visible; width: 100% }
.chart p { font-size: .85rem; margin: .3rem 0 }
details { margin-top: .4rem }
summary { color: var(--accent); cursor: pointer; font-size: .85rem; padding: .2rem 0 }
details .scroll { max-height: 22rem; overflow: auto }
details table { font-size: .85rem }
pre { background: var(--card); border: 1px solid var(--line) }
pre { font-size: .8rem; overflow-x: auto; padding: .8rem }
svg text { fill: var(--ink); font-family: inherit; font-size: 12px }
svg .tick, svg .title { fill: var(--quiet); font-size: 11.5px }
svg .label { font-size: 13px; font-weight: 600 }
svg .middle { text-anchor: middle } svg .end { text-anchor: end }
svg .inside { fill: var(--paper); font-weight: 600; pointer-events: none }
svg .poor + .inside { fill: #000 }
svg .grid { stroke: var(--line); fill: none } svg .axis { stroke: var(--quiet); fill: none }
svg .mark-line { stroke: var(--quiet); stroke-dasharray: 4 3; fill: none }
svg .line { fill: none; stroke: var(--own); stroke-linejoin: round; stroke-width: 2 }
svg .line.c1 { stroke-dasharray: 7 3 } svg .line.c2 { stroke-dasharray: 2 3 }
svg .line.c3 { stroke-dasharray: 9 3 2 3 }
svg .line.c4 { stroke-dasharray: 12 4 } svg .line.c5 { stroke-dasharray: 1 4 }
svg .hit { fill: transparent } svg .hit:hover, svg .alone { fill: var(--own) }
svg .fill, svg .part { fill: var(--own) }
svg .fill:hover, svg .part:hover { opacity: .8 }
svg .track { fill: var(--line); opacity: .55 }
.key { display: flex; flex-wrap: wrap; font-size: .85rem; gap: .1rem 1rem }
.key { list-style: none; margin: .3rem 0; padding: 0 }
.swatch { background: var(--own); border-radius: .2rem; display: inline-block }
.swatch { height: .7em; width: 1.1em }
.prediction { background: #1e6eff }
.expression { font-size: 1.02rem; font-weight: 600 }
.score { font-variant-numeric: tabular-nums }
.facts { display: grid; gap: 1.1rem }
.facts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)) }
.facts td { overflow-wrap: anywhere; text-align: left; white-space: normal }
.facts th { vertical-align: top }
@media print { nav, summary { display: none } }
"""
