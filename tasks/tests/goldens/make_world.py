"""Writes world.json: probabilities of a small world, by filling in templates and comparing texts.

Nothing here follows the Rust code: P(d | c) is the chance that a writer who makes every choice of the
description at random ends up with exactly this text, found by trying every choice whose text is a
prefix of it. Run it on the `world` artifact of a `generate_world` node:

    python3 make_world.py WORLD_FOLDER > world.json
"""
import io
import itertools
import json
import subprocess
import sys

folder = sys.argv[1]
world = json.load(open(f"{folder}/world.json"))


def rows(name):
    text = subprocess.run(["zstd", "-dc", f"{folder}/{name}.jsonl.zst"], capture_output=True, check=True).stdout
    return [json.loads(line) for line in io.StringIO(text.decode())]


rich = world["spec"]["style"] == "rich"
n_attributes = len(world["attributes"])
counts = range(max((n_attributes + 1) // 2, 2), max(n_attributes - 1, 2) + 1) if rich else [n_attributes]


def name(c):
    first, last = world["concepts"][c]["name"]
    return world["first_names"][first] + " " + world["last_names"][last]


def fill(template, c, attributes):
    for a in attributes:
        template = template.replace("{A}", world["attributes"][a], 1)
        template = template.replace("{V}", world["values"][a][world["concepts"][c]["values"][a]], 1)
    return template.replace("{N}", name(c))


def aside_chance(words, c):
    topics = [world["topics"][t] for t in world["concepts"][c]["topics"]]
    chance = 1.0
    for word in words:
        chance *= 0.7 * topics.count(word) / len(topics) + 0.3 * world["fillers"].count(word) / len(world["fillers"])
    return chance / 3


def likelihood(text, c, genres):
    """P(text | c) with the genre uniform over `genres`."""
    total = 0.0
    for g in genres:
        genre = world["genres"][g]
        for opening in genre["openings"]:
            chance = 1.0 / len(genres) / len(genre["openings"]) / len(counts)
            total += chance * facts(text, c, genre, fill(opening, c, []), ())
    return total


def facts(text, c, genre, sofar, stated):
    if not text.startswith(sofar):
        return 0.0
    total = 0.0
    if len(stated) in counts:
        total += ending(text, c, genre, sofar, stated)
    if len(stated) < max(counts):
        left = [a for a in range(n_attributes) if a not in stated]
        for a, template in itertools.product(left, genre["facts"]):
            chance = 1.0 / len(left) / len(genre["facts"])
            after = sofar + " " + fill(template, c, [a])
            if not rich:
                total += chance * facts(text, c, genre, after, (*stated, a))
                continue
            total += 0.8 * chance * facts(text, c, genre, after, (*stated, a))
            rest = text[len(after):].split()
            for n in (2, 3, 4):
                words = rest[1:1 + n]
                noise = after + " " + genre["aside"].replace("{W}", " ".join(words))
                if len(words) == n and text.startswith(noise):
                    total += 0.2 * chance * aside_chance(words, c) * facts(text, c, genre, noise, (*stated, a))
    return total


def ending(text, c, genre, sofar, stated):
    orders = list(itertools.permutations(stated, genre["recap"].count("{V}")))
    closings = genre["closings"] or [None]
    total = 0.0
    for order, closing in itertools.product(orders, closings):
        whole = sofar + " " + fill(genre["recap"], c, order) + ("" if closing is None else " " + closing)
        total += (whole == text) / len(orders) / len(closings)
    return total


n_documents = [len(concept["genres"]) for concept in world["concepts"]]
everything = range(len(world["genres"]))
genre_of = {row["text"]: row["genre"] for row in rows("documents")}


def joint(text):
    return [n / sum(n_documents) * (likelihood(text, c, everything) if n else 0.0) for c, n in enumerate(n_documents)]


cases = []
for pair in rows("pairs"):
    first, second = joint(pair["d1"]), joint(pair["d2"])
    genres = everything if rich else [g for g in everything if g != genre_of[pair["d1"]]]
    conditional = sum(p / sum(first) * likelihood(pair["d2"], c, genres) for c, p in enumerate(first) if p)
    cases.append({
        "d1": pair["d1"],
        "d2": pair["d2"],
        "posterior": [p / sum(first) for p in first],
        "marginal": sum(second),
        "conditional": conditional,
    })
json.dump({"world": world, "cases": cases}, sys.stdout, separators=(",", ":"))
print()
