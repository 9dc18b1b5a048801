#include "tasks/ruler_words.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/rng.h"

#define COUNT(list) ((uint32_t)(sizeof(list) / sizeof((list)[0])))

const char dms_ruler_noise[] = "Rain falls on the roof. The kettle is warm. A clock ticks. Nobody "
                               "is in a hurry. The day goes on.";

static const char *const adjectives[] = {
    "amber",    "ancient", "bitter",  "blunt",  "brave",   "brisk",   "calm",   "careful", "cheap",
    "clever",   "crimson", "curious", "dusty",  "eager",   "elegant", "famous", "fancy",   "fierce",
    "fluffy",   "foreign", "fragile", "gentle", "gloomy",  "golden",  "grumpy", "hasty",   "hollow",
    "honest",   "humble",  "frosty",  "idle",   "jolly",   "juicy",   "keen",   "lazy",    "lively",
    "loyal",    "lucky",   "mellow",  "mighty", "modest",  "muddy",   "narrow", "nervous", "noble",
    "odd",      "patient", "plain",   "polite", "proud",   "quiet",   "rapid",  "rare",    "remote",
    "restless", "rusty",   "salty",   "secret", "shallow", "sharp",   "shiny",  "silent",  "sleepy",
    "smooth",   "solemn",  "spicy",   "steady", "stern",   "sturdy",  "subtle", "sunny",   "swift",
    "tame",     "tender",  "thirsty", "tidy",   "vague",   "velvet",  "vivid",  "wicked",
};

static const char *const nouns[] = {
    "acorn",   "actor",  "almond",   "anchor",   "apron",   "atlas",    "badger", "bakery",
    "balcony", "banjo",  "barrel",   "basket",   "beacon",  "blanket",  "bottle", "bridge",
    "bucket",  "button", "cabin",    "camera",   "candle",  "canyon",   "carpet", "castle",
    "cellar",  "chapel", "cherry",   "circus",   "cobbler", "compass",  "copper", "cottage",
    "cousin",  "cradle", "crystal",  "curtain",  "dancer",  "desert",   "diary",  "doctor",
    "dragon",  "drawer", "easel",    "eclipse",  "engine",  "falcon",   "farmer", "feather",
    "fiddle",  "forest", "fountain", "garden",   "ginger",  "glacier",  "goblet", "grocer",
    "guitar",  "hammer", "harbour",  "helmet",   "hermit",  "hotel",    "island", "jacket",
    "jungle",  "kettle", "kitchen",  "ladder",   "lantern", "lemon",    "lizard", "magnet",
    "marble",  "meadow", "mirror",   "mountain", "muffin",  "museum",   "needle", "novel",
    "oyster",  "palace", "parrot",   "pebble",   "pencil",  "pepper",   "piano",  "pillow",
    "planet",  "pocket", "puzzle",   "quarry",   "rabbit",  "ribbon",   "river",  "rocket",
    "saddle",  "sailor", "scarf",    "shadow",   "sparrow", "spider",   "statue", "temple",
    "thunder", "ticket", "timber",   "tunnel",   "turtle",  "umbrella", "valley", "violin",
    "wagon",   "walnut", "whistle",  "willow",   "window",  "wizard",   "yogurt", "zebra",
};

static const char *const verbs[] = {
    "watches", "follows", "ignores", "admires", "carries", "hides",  "visits", "paints",
    "finds",   "forgets", "answers", "repairs", "borrows", "chases", "greets", "draws",
};

static const char *const times[] = {
    "In the morning",  "Late at night", "On some days",    "After a while", "Before dinner",
    "When it is cold", "Now and then",  "In early spring", "At noon",       "Every winter",
};

uint32_t dms_draw(dms_draws *d)
{
    return dms_philox(d->key, d->drawn++, d->stream[0], d->stream[1], 0x52554C45u /* "RULE" */);
}

uint32_t dms_draw_below(dms_draws *d, uint32_t n)
{
    return (uint32_t)((uint64_t)dms_draw(d) * n >> 32);
}

dms_status dms_draw_distinct(dms_draws *d, uint32_t *out, uint32_t k, uint32_t n)
{
    uint32_t *all = malloc((size_t)n * sizeof(*all) + 1);
    if (!all)
        return dms_fail(DMS_ERR_NOMEM, "no memory to draw among %u", n);
    for (uint32_t i = 0; i < n; i++)
        all[i] = i;
    for (uint32_t i = 0; i < k; i++) { /* the first k steps of Fisher and Yates' shuffle */
        const uint32_t j = i + dms_draw_below(d, n - i), held = all[j];
        all[j] = all[i];
        all[i] = out[i] = held;
    }
    free(all);
    return DMS_OK;
}

static int compare(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

void dms_draw_sort(uint32_t *indices, uint32_t n)
{
    qsort(indices, n, sizeof(*indices), compare);
}

uint32_t dms_word_pairs(void)
{
    return COUNT(adjectives) * COUNT(nouns);
}

dms_status dms_word_pair(dms_text *out, uint32_t index)
{
    return dms_text_format(out, "%s-%s", adjectives[index / COUNT(nouns)],
                           nouns[index % COUNT(nouns)]);
}

uint32_t dms_words_english(void)
{
    return COUNT(adjectives) + COUNT(nouns);
}

/* Three syllables of 100, in an order that does not show the index. */
dms_status dms_word_invented(dms_text *out, uint32_t index)
{
    static const char consonants[] = "bcdfghjklmnpqrstvwxz", vowels[] = "aeiou";
    char word[6];
    uint32_t code =
        (uint32_t)((uint64_t)index * 617u % DMS_WORDS_INVENTED); /* 617 is prime to it */
    for (int i = 0; i < 3; i++, code /= 100) {
        word[2 * i] = consonants[code % 20];
        word[2 * i + 1] = vowels[code / 20 % 5];
    }
    return dms_text_append(out, word, sizeof(word));
}

dms_status dms_word_english(dms_text *out, uint32_t index)
{
    const char *word =
        index < COUNT(adjectives) ? adjectives[index] : nouns[index - COUNT(adjectives)];
    return dms_text_append(out, word, strlen(word));
}

dms_status dms_draw_number(dms_text *out, dms_draws *d, int digits)
{
    for (int i = 0; i < digits; i++) {
        const char c = (char)('0' + (i ? dms_draw_below(d, 10) : 1 + dms_draw_below(d, 9)));
        DMS_TRY(dms_text_append(out, &c, 1));
    }
    return DMS_OK;
}

dms_status dms_draw_uuid(dms_text *out, dms_draws *d)
{
    const uint32_t a = dms_draw(d), b = dms_draw(d), c = dms_draw(d), e = dms_draw(d);
    return dms_text_format(out, "%08x-%04x-4%03x-%04x-%04x%08x", a, b >> 16, b & 0xFFF,
                           0x8000 | (c >> 16 & 0x3FFF), c & 0xFFFF, e);
}

dms_status dms_draw_letters(dms_text *out, dms_draws *d, char first, int n)
{
    for (int i = 0; i < n; i++) {
        const char c = (char)(first + (char)dms_draw_below(d, 26));
        DMS_TRY(dms_text_append(out, &c, 1));
    }
    return DMS_OK;
}

dms_status dms_draw_sentence(dms_text *out, dms_draws *d)
{
    const char *time = times[dms_draw_below(d, COUNT(times))];
    const char *verb = verbs[dms_draw_below(d, COUNT(verbs))];
    const char *adjective = adjectives[dms_draw_below(d, COUNT(adjectives))];
    const char *who = nouns[dms_draw_below(d, COUNT(nouns))];
    const char *what = nouns[dms_draw_below(d, COUNT(nouns))];
    const char *where = nouns[dms_draw_below(d, COUNT(nouns))];
    switch (dms_draw_below(d, 3)) {
    case 0:
        return dms_text_format(out, "%s the %s %s %s the %s.", time, adjective, who, verb, what);
    case 1:
        return dms_text_format(out, "The %s %s the %s beside the %s %s.", who, verb, what,
                               adjective, where);
    default:
        return dms_text_format(out, "%s somebody %s the %s, and the %s stays %s.", time, verb, what,
                               where, adjective);
    }
}
