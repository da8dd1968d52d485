/*
 * string.h for wasm64, for which no libc exists yet: the functions that agent.h and guests use.
 * Compile with -ffreestanding, or the compiler makes calls of functions out of these loops.
 */
#ifndef ISTHMUS_STRING_H
#define ISTHMUS_STRING_H

#include <stddef.h>

#define LIBC_API static inline __attribute__((unused))

/* With bulk memory each is one instruction. */
#define memcpy(to, from, nbytes) __builtin_memcpy(to, from, nbytes)
#define memmove(to, from, nbytes) __builtin_memmove(to, from, nbytes)
#define memset(to, value, nbytes) __builtin_memset(to, value, nbytes)

LIBC_API int memcmp(const void *a, const void *b, size_t nbytes)
{
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < nbytes; i++)
        if (x[i] != y[i])
            return x[i] < y[i] ? -1 : 1;
    return 0;
}

LIBC_API void *memchr(const void *bytes, int value, size_t nbytes)
{
    const unsigned char *at = bytes;
    for (size_t i = 0; i < nbytes; i++)
        if (at[i] == (unsigned char)value)
            return (void *)(at + i);
    return NULL;
}

LIBC_API size_t strlen(const char *string)
{
    size_t n = 0;
    while (string[n])
        n++;
    return n;
}

LIBC_API int strncmp(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i] || !a[i])
            return (unsigned char)a[i] - (unsigned char)b[i];
    return 0;
}

LIBC_API int strcmp(const char *a, const char *b)
{
    return strncmp(a, b, (size_t)-1);
}

LIBC_API size_t strcspn(const char *string, const char *stops)
{
    size_t n = 0;
    for (; string[n]; n++)
        for (const char *stop = stops; *stop; stop++)
            if (string[n] == *stop)
                return n;
    return n;
}

#endif
