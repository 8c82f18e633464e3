/* Five planets, 10,000 steps: scalar double arithmetic with square roots and divisions. */
#include "unit.h"
#include <math.h>

struct body { double x[3], v[3], mass; };

static const struct body start[5] = {
    { { 0, 0, 0 }, { 0, 0, 0 }, 39.47 },
    { { 4.84, -1.16, -0.10 }, { 0.61, 2.81, -0.02 }, 0.037 },
    { { 8.34, 4.12, -0.40 }, { -1.01, 1.82, 0.008 }, 0.011 },
    { { 12.89, -15.11, -0.22 }, { 1.08, 0.87, -0.01 }, 0.0017 },
    { { 15.38, -25.92, 0.18 }, { 0.98, 0.59, -0.03 }, 0.002 },
};

static void step(struct body *b, double dt)
{
    for (int i = 0; i < 5; i++)
        for (int j = i + 1; j < 5; j++) {
            double d[3], square = 0;
            for (int k = 0; k < 3; k++) {
                d[k] = b[i].x[k] - b[j].x[k];
                square += d[k] * d[k];
            }
            double force = dt / (square * sqrt(square));
            for (int k = 0; k < 3; k++) {
                b[i].v[k] -= d[k] * b[j].mass * force;
                b[j].v[k] += d[k] * b[i].mass * force;
            }
        }
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 3; k++)
            b[i].x[k] += dt * b[i].v[k];
}

static uint64_t unit(void)
{
    struct body b[5];
    memcpy(b, start, sizeof(b));
    for (int i = 0; i < 10000; i++)
        step(b, 0.001);
    return bits_of(b[1].x[0]);
}

int main(void) { return measure(unit); }
