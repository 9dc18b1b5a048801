#include "tasks/answer.h"

#include <math.h>
#include <string.h>

#include "tasks/answer_math.h"
#include "tasks/regex.h"

static const char *const extractor_names[] = {
#define X(code, name) name,
    DMS_EXTRACTOR_LIST(X)
#undef X
};

static const char *const equality_names[] = {
#define X(code, name) name,
    DMS_EQUALITY_LIST(X)
#undef X
};

const char *dms_extractor_name(dms_extractor e)
{
    return extractor_names[e];
}

const char *dms_equality_name(dms_equality e)
{
    return equality_names[e];
}

bool dms_extractor_find(dms_extractor *out, const char *name)
{
    for (int i = 0; i < DMS_N_EXTRACTORS; i++)
        if (!strcmp(name, extractor_names[i])) {
            *out = (dms_extractor)i;
            return true;
        }
    return false;
}

bool dms_equality_find(dms_equality *out, const char *name)
{
    for (int i = 0; i < DMS_N_EQUALITIES; i++)
        if (!strcmp(name, equality_names[i])) {
            *out = (dms_equality)i;
            return true;
        }
    return false;
}

static dms_span after(dms_span s, size_t n)
{
    return (dms_span){s.bytes + n, s.n - n};
}

/* false where the thinking has no end. */
static bool skip_thinking(dms_span *s)
{
    static const char end[] = "</think>";
    const size_t at = dms_span_find_last(*s, end);
    if (at == SIZE_MAX)
        return dms_span_find(*s, "<think>") == SIZE_MAX;
    *s = after(*s, at + strlen(end));
    return true;
}

/* The content of the last \boxed{}; bytes = NULL where there is none. */
static dms_span boxed(dms_span s)
{
    static const char open[] = "\\boxed{";
    const size_t at = dms_span_find_last(s, "\\boxed");
    if (at == SIZE_MAX || at + strlen(open) > s.n || memcmp(s.bytes + at, open, strlen(open)))
        return (dms_span){0};
    const dms_span in = after(s, at + strlen(open));
    size_t depth = 1;
    for (size_t i = 0; i < in.n; i++) {
        depth += in.bytes[i] == '{';
        depth -= in.bytes[i] == '}';
        if (depth == 0)
            return (dms_span){in.bytes, i};
    }
    return (dms_span){0};
}

/* The lines between the last two that have ``` in them; empty where there are fewer. */
static dms_span code_of(dms_span s)
{
    const dms_span none = {"", 0};
    const size_t closing = dms_span_find_last(s, "```");
    if (closing == SIZE_MAX)
        return none;
    const char *line = closing ? memrchr(s.bytes, '\n', closing) : NULL;
    if (!line)
        return none;
    const dms_span before = {s.bytes, (size_t)(line - s.bytes)};
    const size_t opening = dms_span_find_last(before, "```");
    if (opening == SIZE_MAX)
        return none;
    const char *end = memchr(s.bytes + opening, '\n', s.n - opening);
    /* Two fence lines that touch have nothing between them. */
    return end == line ? none : (dms_span){end + 1, (size_t)(line - end - 1)};
}

static dms_status extract(dms_span *found, dms_extractor extractor, dms_span s)
{
    *found = (dms_span){0};
    const bool thinks =
        extractor == DMS_EXTRACT_BOXED_AFTER_THINKING || extractor == DMS_EXTRACT_LAST_INTEGER;
    if (thinks && !skip_thinking(&s))
        return DMS_OK;
    switch (extractor) {
    case DMS_EXTRACT_GSM8K_STRICT:
        return dms_regex_search(found, "#### (\\-?[0-9\\.\\,]+)", s, DMS_MATCH_FIRST);
    case DMS_EXTRACT_GSM8K_FLEXIBLE:
        return dms_regex_search(found, "(-?[$0-9.,]{2,})|(-?[0-9]+)", s, DMS_MATCH_LAST);
    case DMS_EXTRACT_LAST_INTEGER:
        /* A minus after a letter, a digit or a bracket subtracts. */
        return dms_regex_search(found,
                                "(?<![0-9])(?<![0-9]\\.)(?:(?<![\\w)\\]}])-)?"
                                "(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?![0-9]|[.,][0-9])",
                                s, DMS_MATCH_LAST);
    case DMS_EXTRACT_LETTER:
        return dms_regex_search(found, "(?i)Answer[ \\t]*:[ \\t]*\\$?([A-D])\\$?", s,
                                DMS_MATCH_FIRST);
    case DMS_EXTRACT_BOXED:
    case DMS_EXTRACT_BOXED_AFTER_THINKING:
        *found = boxed(s);
        return DMS_OK;
    case DMS_EXTRACT_CODE:
        *found = code_of(s);
        return DMS_OK;
    default:
        *found = dms_span_strip(s);
        return DMS_OK;
    }
}

dms_status dms_answer_extract(dms_text *out, bool *found, dms_extractor extractor, dms_span output)
{
    dms_status status = DMS_OK;
    dms_text store = {0};
    dms_span valid, answer;
    if (output.n == 0)
        output.bytes = "";
    DMS_TRY_OR(end, dms_span_valid(&valid, &store, output));
    DMS_TRY_OR(end, extract(&answer, extractor, valid));
    DMS_TRY_OR(end, dms_text_append(out, answer.bytes, answer.n));
    *found = answer.bytes != NULL;
end:
    dms_text_free(&store);
    return status;
}

/* lm-evaluation-harness removes, in this order: commas, dollar signs, all to the last "#### ", and
 * a period at the end or before the line break that ends it. */
static dms_status normalise_gsm8k(dms_text *out, dms_span answer)
{
    dms_status status = DMS_OK;
    dms_text t = {0};
    DMS_TRY_OR(end, dms_text_append(&t, answer.bytes, answer.n));
    DMS_TRY_OR(end, dms_text_replace(&t, ",", ""));
    DMS_TRY_OR(end, dms_text_replace(&t, "$", ""));
    dms_span s = {t.bytes, t.n};
    const size_t mark = dms_span_find_last(s, "#### ");
    if (mark != SIZE_MAX)
        s = after(s, mark + strlen("#### "));
    const size_t tail = s.n > 0 && s.bytes[s.n - 1] == '\n';
    const bool period = s.n > tail && s.bytes[s.n - 1 - tail] == '.';
    DMS_TRY_OR(end, dms_text_lower(out, (dms_span){s.bytes, s.n - tail - period}));
    DMS_TRY_OR(end, dms_text_append(out, "\n", tail));
end:
    dms_text_free(&t);
    return status;
}

/* The digits of a whole number without leading zeros, a minus before them; what is no whole number
 * stays as it is, without white space at its ends. */
static dms_status normalise_integer(dms_text *out, dms_span answer)
{
    dms_span s = dms_span_strip(answer);
    const size_t start = out->n;
    if (s.n >= 2 && s.bytes[0] == '$' && s.bytes[s.n - 1] == '$')
        s = dms_span_strip((dms_span){s.bytes + 1, s.n - 2});
    const dms_span whole = s;
    const bool minus = s.n > 0 && s.bytes[0] == '-';
    bool zeros = true, digits = false;
    if (minus || (s.n > 0 && s.bytes[0] == '+'))
        s = after(s, 1);
    if (minus)
        DMS_TRY(dms_text_append(out, "-", 1));
    for (size_t i = 0; i < s.n; i++) {
        const char c = s.bytes[i];
        if (c == ',' && digits)
            continue;
        if (c < '0' || c > '9') {
            out->n = start;
            return dms_text_append(out, whole.bytes, whole.n);
        }
        digits = true;
        zeros &= c == '0';
        if (!zeros)
            DMS_TRY(dms_text_append(out, &c, 1));
    }
    if (digits && zeros)
        out->n = start;
    return digits && zeros ? dms_text_append(out, "0", 1) : DMS_OK;
}

static dms_status normalise_math(dms_text *out, bool *fails, dms_span answer)
{
    const size_t start = out->n;
    DMS_TRY(dms_math_normalise(out, fails, answer));
    if (!*fails)
        return DMS_OK;
    out->n = start;
    return dms_text_append(out, answer.bytes, answer.n);
}

static dms_status normalise(dms_text *out, bool *fails, dms_equality equality, dms_span answer)
{
    *fails = false;
    switch (equality) {
    case DMS_EQUAL_GSM8K:
        return normalise_gsm8k(out, answer);
    case DMS_EQUAL_INTEGER:
        return normalise_integer(out, answer);
    case DMS_EQUAL_MATH:
    case DMS_EQUAL_NUMBER:
        return normalise_math(out, fails, answer);
    default:
        return dms_text_append(out, answer.bytes, answer.n);
    }
}

dms_status dms_answer_normalise(dms_text *out, dms_equality equality, dms_span answer)
{
    dms_status status = DMS_OK;
    bool fails;
    dms_text store = {0};
    dms_span valid;
    DMS_TRY_OR(end, dms_span_valid(&valid, &store, answer));
    DMS_TRY_OR(end, normalise(out, &fails, equality, valid));
end:
    dms_text_free(&store);
    return status;
}

static bool is_integer(dms_span s)
{
    const size_t sign = s.n > 0 && s.bytes[0] == '-';
    for (size_t i = sign; i < s.n; i++)
        if (s.bytes[i] < '0' || s.bytes[i] > '9')
            return false;
    return s.n > sign;
}

static bool same(dms_equality equality, dms_span a, dms_span b)
{
    double x, y;
    if (equality == DMS_EQUAL_INTEGER)
        return is_integer(a) && dms_span_equal(a, b);
    if (dms_span_equal(a, b))
        return true;
    return equality == DMS_EQUAL_NUMBER && dms_math_number(&x, a) && dms_math_number(&y, b) &&
           fabs(x - y) <= 1e-6;
}

dms_status dms_answer_equal(bool *equal, dms_equality equality, dms_span answer, dms_span reference)
{
    dms_status status = DMS_OK;
    dms_text a = {0}, b = {0}, store_a = {0}, store_b = {0};
    bool fails_a, fails_b;
    DMS_TRY_OR(end, dms_span_valid(&answer, &store_a, answer));
    DMS_TRY_OR(end, dms_span_valid(&reference, &store_b, reference));
    DMS_TRY_OR(end, normalise(&a, &fails_a, equality, answer));
    DMS_TRY_OR(end, normalise(&b, &fails_b, equality, reference));
    if (fails_a || fails_b) /* then the original compares both as they are */
        *equal = same(equality, answer, reference);
    else
        *equal = same(equality, (dms_span){a.bytes, a.n}, (dms_span){b.bytes, b.n});
end:
    dms_text_free(&a);
    dms_text_free(&b);
    dms_text_free(&store_a);
    dms_text_free(&store_b);
    return status;
}

dms_status dms_answer_judge(bool *right, dms_answer_rule rule, dms_span output, dms_span reference)
{
    dms_text answer = {0};
    bool found = false;
    *right = false;
    dms_status status = dms_answer_extract(&answer, &found, rule.extractor, output);
    if (!status && found)
        status =
            dms_answer_equal(right, rule.equality, (dms_span){answer.bytes, answer.n}, reference);
    dms_text_free(&answer);
    return status;
}
