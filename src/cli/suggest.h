/* The word that somebody probably meant. */
#ifndef DOPPEL_CLI_SUGGEST_H
#define DOPPEL_CLI_SUGGEST_H

/* Insertions, deletions, replacements and swaps of neighbours that turn a into b. Words longer than 63 count as far apart. */
unsigned suggest_distance(const char *a, const char *b);

/* The nearest of name(0), name(1), ... (NULL ends the list) if it is near enough to be meant; else NULL. */
const char *suggest(const char *word, const char *(*name)(unsigned i));

#endif
