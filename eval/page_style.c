#include "eval/page_style.h"

#define LIGHT                                                                                  \
    "--bg:#fff;--panel:#f7f7f5;--ink:#1b1b1a;--soft:#5f5f5b;--rule:#dcdcd7;--grid:#e9e9e5;"    \
    "--axis:#8a8a84;--shade:213,94,0;--shade-most:.62;--s0:#c14010;--s1:#316acf;--s2:#00542d;" \
    "--s3:#cb7d9c;--s4:#dd7c00;--s5:#389cdb;--s6:#625660;--s7:#920082;--s8:#1f2eba;--s9:#749a55;"
#define DARK                                                                                    \
    "--bg:#141413;--panel:#1e1e1c;--ink:#ecece6;--soft:#a6a69f;--rule:#3a3a37;--grid:#2a2a28;"  \
    "--axis:#7c7c76;--shade:240,110,20;--shade-most:.6;--s0:#ee7c2b;--s1:#0b66ee;--s2:#117f3c;" \
    "--s3:#e683b2;--s4:#face14;--s5:#63deff;--s6:#756c6c;--s7:#c336b0;--s8:#64a3ff;--s9:#afd690;"

const char dms_page_theme[] =
    ":root{color-scheme:light dark;" LIGHT "}\n"
    "@media (prefers-color-scheme:dark){:root{" DARK "}}\n"
    "@media print{:root{" LIGHT "}.figures{break-inside:avoid}}\n"
    ".c0{--c:var(--s0)}.c1{--c:var(--s1)}.c2{--c:var(--s2)}.c3{--c:var(--s3)}"
    ".c4{--c:var(--s4)}.c5{--c:var(--s5)}.c6{--c:var(--s6)}.c7{--c:var(--s7)}"
    ".c8{--c:var(--s8)}.c9{--c:var(--s9)}\n"
    ".line,.bar{stroke:var(--c)}.mark{fill:var(--c)}\n";

const char dms_page_text_style[] =
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"
    "'Segoe UI',Roboto,'Helvetica Neue','Liberation Sans',Arial,sans-serif}\n"
    "main{max-width:1240px;margin:0 auto;padding:36px 28px 64px}\n"
    "h1{font-size:27px;line-height:1.2;font-weight:650;letter-spacing:-.01em;margin:0 0 4px}\n"
    "h2{font-size:19px;font-weight:650;margin:44px 0 12px;padding-top:14px;border-top:1px solid "
    "var(--rule)}\n"
    "h3{font-size:15px;font-weight:650;margin:24px 0 8px}\n"
    "p{max-width:78ch;margin:0 0 12px}.soft,.sub{color:var(--soft)}.sub{font-size:15px}\n"
    "h1,h2,h3,p,figcaption,.tile{overflow-wrap:anywhere}\n"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;"
    "margin:22px 0 8px}\n"
    ".tile{background:var(--panel);border-radius:8px;padding:12px 14px 10px}\n"
    ".tile b{display:block;white-space:nowrap;font-size:20px;line-height:1.25;font-weight:600;"
    "font-variant-numeric:tabular-nums}\n"
    ".tile span{font-size:13px;color:var(--soft);display:block}\n"
    ".figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));"
    "gap:26px 32px;margin:14px 0 20px}\n"
    "figure{margin:0;min-width:0}figure.wide{grid-column:1/-1;overflow-x:auto}\n"
    "figcaption{font-size:13px;line-height:1.45;color:var(--soft);margin-top:6px;max-width:84ch}\n";

const char dms_page_figure_style[] =
    "svg{display:block;width:100%;height:auto;max-height:640px;overflow:visible}\n"
    "svg text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',"
    "'Liberation Sans',Arial,sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums}\n"
    "svg .tick{fill:var(--soft);font-size:11.5px}svg .title{font-size:12.5px}svg "
    ".name{font-size:12.5px}\n"
    "svg .strong{font-weight:700}\n"
    "svg .grid{stroke:var(--grid);stroke-width:1;fill:none}\n"
    "svg .axis{stroke:var(--axis);stroke-width:1;fill:none}\n"
    "svg .lead{stroke:var(--axis);stroke-width:.8;fill:none;opacity:.75}\n"
    "svg .ref{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:2 4;fill:none}\n"
    "svg .line{fill:none;stroke-width:1.7;stroke-linejoin:round;stroke-linecap:butt}\n"
    "svg .line.emphasis{stroke-width:3}svg .line.faint{stroke-width:1;opacity:.32}\n"
    "svg .bar{fill:none;stroke-width:1.2}\n"
    "svg .mark{stroke:var(--bg);stroke-width:1;paint-order:stroke}\n"
    "svg .cell{stroke:var(--bg);stroke-width:1}svg .none{fill:var(--grid)}\n"
    "svg .dark{fill:#111;font-size:10.5px}svg .light{fill:#fff;font-size:10.5px}\n";

const char dms_page_table_style[] =
    ".scroll{overflow-x:auto;margin:6px 0 16px}\n"
    "table{border-collapse:collapse;font-size:13px;line-height:1.35;"
    "font-variant-numeric:tabular-nums;border-top:1.5px solid var(--ink);"
    "border-bottom:1.5px solid var(--ink)}\n"
    "th{font-weight:600;vertical-align:bottom;border-bottom:1px solid var(--ink)}\n"
    "th,td{padding:4px 0 4px 18px;text-align:right;white-space:nowrap}\n"
    "th:first-child,td:first-child{padding-left:4px}th:last-child,td:last-child{padding-right:4px}"
    "\n"
    "th.text,td.text{text-align:left;white-space:normal;overflow-wrap:break-word;"
    "max-width:44em}td.text:first-child{white-space:nowrap}\n"
    "th:first-child,td:first-child{position:sticky;left:0;background:var(--bg)}\n"
    "tbody tr:hover td{background:var(--panel)}\n"
    "details{margin:10px 0}summary{cursor:pointer;color:var(--soft);font-size:14px}\n"
    "pre,.sample{background:var(--panel);border-radius:8px;padding:12px 16px;margin:8px 0 14px;"
    "overflow-x:auto}\n"
    "pre{font:12.5px/1.5 ui-monospace,'SF Mono',Menlo,Consolas,'Liberation Mono',monospace}\n"
    "pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}\n"
    ".sample{font-size:15px;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere}\n"
    ".sample i,.scale i{font-style:normal;padding:2px 0;background:"
    "rgba(var(--shade),calc(var(--f,0)*var(--shade-most)))}\n"
    ".sample i{border-radius:2px}.sample em{color:var(--soft);font-style:normal}\n"
    ".scale{font-size:12px;color:var(--soft);margin-bottom:4px}\n"
    ".scale i{display:inline-block;width:34px;height:14px;padding:0;margin:0 1px;"
    "vertical-align:-2px;box-shadow:inset 0 0 0 1px var(--rule)}\n";
