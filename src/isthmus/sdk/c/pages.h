/*
 * pages.h: whole pages of linear memory, for what is large: sessions, tensors.
 *
 * An allocator that rounds large blocks up to powers of two, as the one of zig's libc does, takes up
 * to twice the memory of a KV cache, and cannot give more than 2 GiB of 4. Here a block takes what
 * it asks for, rounded up to wasm pages of 64 KiB. Linear memory never shrinks, so blocks that are
 * given back are kept, joined with their neighbours, and handed out again.
 */
#ifndef ISTHMUS_PAGES_H
#define ISTHMUS_PAGES_H

#include <stddef.h>
#include <stdint.h>

#define PAGES_API static inline __attribute__((unused))
#define PAGES_NBYTES 65536u

/* A free block describes itself in its first bytes; the list is in the order of addresses. */
typedef struct pages_free {
    struct pages_free *next;
    size_t n_pages;
} pages_free_t;

static pages_free_t *pages_first_free;

PAGES_API char *pages_end(const pages_free_t *block)
{
    return (char *)block + block->n_pages * PAGES_NBYTES;
}

PAGES_API size_t pages_count(size_t nbytes)
{
    return nbytes / PAGES_NBYTES + (nbytes % PAGES_NBYTES != 0);
}

/* Takes the end of the first free block that is large enough. */
PAGES_API void *pages_reuse(size_t n_pages)
{
    for (pages_free_t **link = &pages_first_free; *link; link = &(*link)->next) {
        pages_free_t *block = *link;
        if (block->n_pages < n_pages)
            continue;
        block->n_pages -= n_pages;
        if (block->n_pages == 0)
            *link = block->next;
        return pages_end(block);
    }
    return NULL;
}

/* Allocates, at a multiple of 64 KiB; NULL where memory is exhausted. The contents are undefined. */
PAGES_API void *pages_take(size_t nbytes)
{
    size_t n_pages = pages_count(nbytes ? nbytes : 1);
    void *found = pages_reuse(n_pages);
    if (found)
        return found;
    size_t grown = __builtin_wasm_memory_grow(0, n_pages);
    return grown == SIZE_MAX ? NULL : (void *)(grown * PAGES_NBYTES);
}

/* Gives back what pages_take(nbytes) allocated; NULL is fine. */
PAGES_API void pages_give(void *pointer, size_t nbytes)
{
    if (!pointer)
        return;
    pages_free_t *block = (pages_free_t *)pointer, *before = NULL, *after = pages_first_free;
    for (; after && after < block; after = after->next)
        before = after;
    *block = (pages_free_t){after, pages_count(nbytes ? nbytes : 1)};
    if (after && pages_end(block) == (char *)after) {
        block->n_pages += after->n_pages;
        block->next = after->next;
    }
    if (!before) {
        pages_first_free = block;
    } else if (pages_end(before) == (char *)block) {
        before->n_pages += block->n_pages;
        before->next = block->next;
    } else {
        before->next = block;
    }
}

#endif
