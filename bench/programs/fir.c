/* A filter of 64 taps over 16,384 samples of single precision: loops that vectorize. */
#include "unit.h"

enum { TAPS = 64, SAMPLES = 1 << 14 };

static float taps[TAPS], in[SAMPLES + TAPS], out[SAMPLES];

static uint64_t unit(void)
{
    memset(out, 0, sizeof(out));
    for (int k = 0; k < TAPS; k++)
        for (int i = 0; i < SAMPLES; i++)
            out[i] += taps[k] * in[i + k];
    double sum = 0;
    for (int i = 0; i < SAMPLES; i += 97)
        sum += (double)out[i];
    return bits_of(sum);
}

int main(void)
{
    for (int k = 0; k < TAPS; k++)
        taps[k] = (float)(k % 7) / 9;
    for (int i = 0; i < SAMPLES + TAPS; i++)
        in[i] = (float)(i % 101) / 17;
    return measure(unit);
}
