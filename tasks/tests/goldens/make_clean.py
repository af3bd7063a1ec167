"""Writes clean.json: made-up texts, broken and honest, with what ftfy makes of them."""

import json
import sys

import ftfy

WORDS = [
    "café", "naïve façade", "Überraschung für alle", "el niño pequeño", "garçon", "Ångström", "smörgåsbord",
    "“quoted”", "it’s", "wait…", "a – b", "a — b", "5 €", "£20", "20 °C", "© 2020", "½ cup", "x²", "a × b",
    "日本語", "한국어 텍스트", "Привет, мир", "γειά σου", "مرحبا", "नमस्ते", "🦀 crab", "👍🏽 ok", "łódź", "žluťoučký kůň", "Ørsted",
    "œuvre", "Ærø", "ß ist scharf", "¿qué?", "¡hola!", "• item", "™ mark", "→ next", "─ box ─", "Ó Órgano",
]
TEXTS = []
for word in WORDS:
    once = word.encode().decode("sloppy-windows-1252")
    TEXTS += [once, "see " + once + " here"]
    TEXTS.append(word.encode().decode("latin-1"))
TEXTS += [word.encode().decode("sloppy-windows-1252").encode().decode("sloppy-windows-1252") for word in WORDS[:12]]
# Honest text that must stay as it is.
TEXTS += WORDS + [
    "„Schluß“", "«Café»", "“Café”…", "CAFÉ® and NOËL™", "3×½ inches", "Ü“ no", "MAÇÃ”, ela disse", "Ñ° 5", "voilà”",
    "Â and Ã alone", "the Å unit", "plain ASCII", "a\u0007b", "x\u0080y \u0093quoted\u0094", "\ufeffmark",
]
CONFIG = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization=None,
)
CASES = []
for text in dict.fromkeys(TEXTS):
    fixed = ftfy.fix_text(text, CONFIG)
    CASES.append((text, fixed))
json.dump(CASES, sys.stdout, ensure_ascii=False, indent=0)
print()
