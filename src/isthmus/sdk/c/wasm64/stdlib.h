/*
 * stdlib.h for wasm64, for which no libc exists yet: malloc, calloc, realloc, free.
 *
 * Blocks of up to 32 KiB are powers of two, kept in a list for each size and cut from wasm pages;
 * larger ones are wasm pages of their own (pages.h). Before each block lies its length.
 */
#ifndef ISTHMUS_STDLIB_H
#define ISTHMUS_STDLIB_H

#include <stddef.h>
#include <stdint.h>

#include "../pages.h"
#include "string.h"

#define HEAP_HEAD_NBYTES 16u /* keeps blocks aligned for every type */
#define HEAP_LARGEST 32768u
#define HEAP_N_SIZES 11 /* 32 to 32,768 bytes, the head included */

typedef struct heap_block {
    struct heap_block *next; /* while it is free */
    size_t nbytes;           /* with the head */
} heap_block_t;

_Static_assert(sizeof(heap_block_t) == HEAP_HEAD_NBYTES, "the head of a block");

static heap_block_t *heap_free_blocks[HEAP_N_SIZES];

/* Cuts a wasm page into free blocks of 32 << index bytes. */
LIBC_API int heap_refill(uint32_t index)
{
    size_t nbytes = (size_t)32 << index;
    char *page = pages_take(PAGES_NBYTES);
    if (!page)
        return 0;
    for (size_t at = PAGES_NBYTES; at > 0; at -= nbytes) {
        heap_block_t *block = (heap_block_t *)(void *)(page + at - nbytes);
        *block = (heap_block_t){heap_free_blocks[index], nbytes};
        heap_free_blocks[index] = block;
    }
    return 1;
}

LIBC_API void *malloc(size_t nbytes)
{
    if (nbytes > SIZE_MAX / 2)
        return NULL;
    size_t whole = nbytes + HEAP_HEAD_NBYTES;
    heap_block_t *block;
    if (whole > HEAP_LARGEST) {
        if (!(block = pages_take(whole)))
            return NULL;
        block->nbytes = whole;
    } else {
        uint32_t index = 0;
        while (((size_t)32 << index) < whole)
            index++;
        if (!heap_free_blocks[index] && !heap_refill(index))
            return NULL;
        block = heap_free_blocks[index];
        heap_free_blocks[index] = block->next;
    }
    return (char *)block + HEAP_HEAD_NBYTES;
}

LIBC_API void *calloc(size_t n, size_t nbytes)
{
    size_t whole;
    void *pointer = __builtin_mul_overflow(n, nbytes, &whole) ? NULL : malloc(whole);
    return pointer ? memset(pointer, 0, whole) : NULL;
}

LIBC_API void free(void *pointer)
{
    if (!pointer)
        return;
    heap_block_t *block = (heap_block_t *)(void *)((char *)pointer - HEAP_HEAD_NBYTES);
    if (block->nbytes > HEAP_LARGEST) {
        pages_give(block, block->nbytes);
        return;
    }
    uint32_t index = 0;
    while (((size_t)32 << index) < block->nbytes)
        index++;
    block->next = heap_free_blocks[index];
    heap_free_blocks[index] = block;
}

LIBC_API void *realloc(void *pointer, size_t nbytes)
{
    if (!pointer)
        return malloc(nbytes);
    heap_block_t *block = (heap_block_t *)(void *)((char *)pointer - HEAP_HEAD_NBYTES);
    size_t room = block->nbytes - HEAP_HEAD_NBYTES;
    if (nbytes <= room)
        return pointer;
    void *moved = malloc(nbytes);
    if (!moved)
        return NULL;
    memcpy(moved, pointer, room);
    free(pointer);
    return moved;
}

#endif
