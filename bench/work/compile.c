/* What the compiler is given: a program with a real library in it, an encoder for pictures; with ALL several others as well. */
#ifdef ALL
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>
#define STB_TRUETYPE_IMPLEMENTATION
#include <stb/stb_truetype.h>
#define STB_IMAGE_RESIZE_IMPLEMENTATION
#include <stb/stb_image_resize.h>
#define STB_DXT_IMPLEMENTATION
#include <stb/stb_dxt.h>
#define STB_SPRINTF_IMPLEMENTATION
#include <stb/stb_sprintf.h>
#define STB_HEXWAVE_IMPLEMENTATION
#include <stb/stb_hexwave.h>
#endif
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

static unsigned long sum, size;

static void add(void *context, void *data, int count)
{
    (void)context;
    for (int i = 0; i < count; i++)
        sum = sum * 31 + ((unsigned char *)data)[i];
    size += (unsigned long)count;
}

int main(void)
{
    static unsigned char picture[64][64][3];
    for (int y = 0; y < 64; y++)
        for (int x = 0; x < 64; x++)
            for (int c = 0; c < 3; c++)
                picture[y][x][c] = (unsigned char)(x * y >> c);
    stbi_write_png_to_func(add, NULL, 64, 64, 3, picture, 64 * 3);
    stbi_write_jpg_to_func(add, NULL, 64, 64, 3, picture, 80);
    printf("%lu %lx\n", size, sum);
    return 0;
}
