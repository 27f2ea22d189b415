"""The page's style sheet: light and dark by the reader's scheme, phone and desktop, no scripts."""

STYLE = """
:root{color-scheme:light dark;--page:#fbfbfa;--card:#fff;--ink:#1d2229;--soft:#5d6672;--line:#dfe2e6;--band:#f3f4f6;
--pick:#e3f4ef;--good:#13795b;--bad:#b3261e;--open:#5d6672;--link:#1f5fbf}
@media (prefers-color-scheme:dark){:root{--page:#14171b;--card:#1b1f24;--ink:#e6e8eb;--soft:#a2abb6;--line:#333a43;
--band:#22272e;--pick:#17352e;--good:#5fd0a7;--bad:#ff8a80;--open:#a2abb6;--link:#8ab4f8}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0 auto;padding:1.25rem clamp(.75rem,3vw,2.5rem) 4rem;max-width:88rem;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:clamp(1.4rem,4vw,2rem);line-height:1.2;margin:.25rem 0 1.25rem;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.5rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.75rem 0 .5rem}
p{max-width:48rem}header p{margin:0}
a{color:var(--link)}
.soft,caption,figcaption{color:var(--soft);font-size:.875rem}
.verdicts{list-style:none;padding:0;margin:0;display:grid;gap:.6rem}
.verdicts li{display:flex;gap:.75rem;align-items:flex-start;padding:.75rem .9rem;background:var(--card);
border:1px solid var(--line);border-left:.35rem solid var(--tone);border-radius:.4rem}
.verdicts b{flex:0 0 auto;min-width:6.2rem;color:var(--tone);white-space:nowrap}
.helped{--tone:var(--good)}.hurt{--tone:var(--bad)}.unclear{--tone:var(--open)}
@media (max-width:34rem){.verdicts li{flex-direction:column;gap:.15rem}}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.25rem 1.25rem;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
@media (max-width:34rem){dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
nav ul{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:.35rem 1rem}
.scroll{overflow-x:auto;max-width:100%;border:1px solid var(--line);border-radius:.4rem;background:var(--card)}
.note{margin:.25rem 0 .6rem;max-width:62rem}
table{border-collapse:collapse;width:100%;font-size:.8125rem;font-variant-numeric:tabular-nums}
th,td{padding:.4rem .55rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;background:var(--band);min-width:2.5rem}
tbody th{font-weight:400;min-width:10rem;max-width:20rem;overflow-wrap:anywhere;background:var(--card)}
thead th:first-child,tbody th{position:sticky;left:0;z-index:1;border-right:1px solid var(--line)}
.number{text-align:right;white-space:nowrap}
thead .number{white-space:normal}
.list{min-width:8.5rem}
.list span{white-space:nowrap}
tr.reference>*{background:var(--band)}tr.reference>th{font-style:italic}
tr.chosen>*{background:var(--pick)}tr.chosen>th{font-weight:600}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.85em}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--band);padding:.75rem;border-radius:.4rem}
summary{cursor:pointer}
figure{margin:1rem 0}
figure .scroll{padding:.75rem;border:0;width:fit-content}
figure svg{display:block;height:auto;max-width:none;overflow:visible}
figcaption{margin-top:.4rem;max-width:62rem}
.key{display:inline-block;width:1.6em;height:.7em;margin-right:.35em}.item{white-space:nowrap;margin-left:.7em}
.rule{height:0;vertical-align:middle;border-top:2.5px solid}
.rule.dashed{border-top-style:dashed}
@media (max-width:34rem){
figure svg{max-width:34rem}.item{display:block;margin-left:0}th,td{padding:.35rem .5rem}tbody th{min-width:8.5rem;max-width:10.5rem}}
@media print{.scroll{overflow:visible}body{max-width:none}}
"""
