"""How the page looks: quiet, legible, light or dark as the system asks; nothing is fetched for it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio.themes import Base

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")

# Colours as in the reports: text stands out from its ground by 4.5:1 at least, light and dark.
CSS = """
:root { --faint: #57606a; --said-bad: #b42318; --said-doubt: #8a4b00; --bar: #0a58a6 }
.dark { --faint: #9aa4ae; --said-bad: #ff9c8f; --said-doubt: #ffd591; --bar: #79b8ff }
.gradio-container { max-width: 76rem !important; margin: 0 auto !important }
.photos, .verdict, .note { overflow-wrap: anywhere }
.head h1 { font-size: 1.5rem; line-height: 1.2; margin: 0.75rem 0 0.15rem; font-weight: 650 }
.head p, .note, .note p, .gradio-container span[data-testid="block-info"] + .prose, .gradio-container .info {
  color: var(--faint) !important }
.head p, .note, .note p { font-size: 0.92rem; margin: 0.2rem 0 }
.chips { gap: 0.5rem !important } .chip { flex: 0 1 auto !important; font-weight: 400 }
.photos { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 0.75rem }
.photos figure { margin: 0 }
.photos img { width: 100%; border-radius: 6px; display: block }
.photos figcaption { font-size: 0.88rem; line-height: 1.4; margin-top: 0.3rem }
.photos ul { margin: 0; padding: 0; list-style: none }
.photos .problem { color: var(--said-bad) }
.photos .doubt { color: var(--said-doubt) }
.photos .fine { color: var(--faint) }
.making p { margin: 0 0 0.4rem; font-variant-numeric: tabular-nums }
.making .bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); overflow: hidden }
.making .bar div { height: 100%; background: var(--bar); transition: width 0.2s }
.previews { display: grid; grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); gap: 0.5rem;
  margin-top: 0.75rem }
.previews img { width: 100%; border-radius: 6px }
.kept { display: grid; grid-template-columns: repeat(auto-fill, minmax(4rem, 1fr)); gap: 0.4rem;
  margin-top: 0.75rem }
.kept img { width: 100%; border-radius: 4px }
.making .bar + p { margin-top: 0.5rem }
.verdict p { margin: 0.2rem 0 }
.report h3 { font-size: 1rem; margin: 1rem 0 0.3rem }
.report .warned { color: var(--said-doubt) }
.report .scroll { overflow-x: auto }
.report table { border-collapse: collapse; width: 100%; font-size: 0.9rem;
  border: 0 !important }
.report th, .report td { padding: 0.28rem 0.5rem; border: 0 !important; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary) !important; text-align: left }
.report .number { text-align: right; font-variant-numeric: tabular-nums }
.report th + th { text-align: right }
.report small { color: var(--faint); display: block; white-space: nowrap }
#dataset-gallery .grid-container {
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) !important }
.outcome:not(:has(.verdict)) .result { display: none }
.results, .results .grid-wrap { height: auto !important; min-height: 0 !important;
  max-height: none !important }
.results:has(.preview) { min-height: 30rem !important }
.results .caption-label { font-variant-numeric: tabular-nums; white-space: normal !important;
  max-width: 100% !important; line-height: 1.3 }
@media (prefers-reduced-motion: reduce) { * { transition: none !important; animation: none !important } }
"""


def theme() -> "Base":
    """Gradio's plainest, in system fonts and with one colour."""
    from gradio.themes import Base
    from gradio.themes.utils.colors import Color

    blue = Color(
        c50="#eef5fc", c100="#d9e8f8", c200="#b3d1f0", c300="#84b4e4", c400="#4f92d3", c500="#2273bd",
        c600="#0a58a6", c700="#094b8d", c800="#0b3f74", c900="#0c355f", c950="#08213d",
    )  # fmt: skip
    return Base(
        primary_hue=blue,
        neutral_hue="gray",
        radius_size="sm",
        font=list(FONTS),
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="#ffffff",
        button_primary_background_fill_dark="*primary_500",
        slider_color="*primary_600",
        block_shadow="none",
        block_label_text_weight="600",
    )
