/* An HTTP/1.1 answer as it arrives, in any pieces: where it ends, and how many bytes its body has without framing.
 * Only answers with Content-Length or in chunks; no peer ends one with its connection here. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define HEAD_BYTES 4096

enum part { HEAD, LENGTH, CHUNK_LINE, CHUNK_DATA, CHUNK_END, TRAILER };

struct answer {
    enum part part;
    char head[HEAD_BYTES];
    size_t head_size;
    char line[24];                /* a chunk's size in hex */
    size_t line_size;
    size_t left;                  /* bytes of the body, or of the chunk */
    size_t body_bytes;
    bool bad, closes;             /* status is not 200; the connection ends with it */
};

static void answer_begin(struct answer *a) {
    a->part = HEAD;
    a->head_size = a->line_size = a->body_bytes = 0;
}

/* Take a part of the head; returns how many bytes belong to it, or -1 when it is none of ours. */
static ssize_t answer_head(struct answer *a, const char *bytes, size_t size) {
    size_t before = a->head_size, room = HEAD_BYTES - 1 - before, taken = size < room ? size : room;
    memcpy(a->head + before, bytes, taken);
    a->head_size += taken;
    a->head[a->head_size] = 0;
    char *end = strstr(a->head, "\r\n\r\n");
    if (!end)
        return taken < size ? -1 : (ssize_t)size;
    end[2] = 0;
    const char *length = strcasestr(a->head, "\r\ncontent-length:");
    const char *chunked = strcasestr(a->head, "\r\ntransfer-encoding: chunked");
    a->bad = strncmp(a->head, "HTTP/1.1 200", 12) != 0;
    a->closes = strcasestr(a->head, "\r\nconnection: close") != NULL;
    a->left = length ? strtoul(length + 17, NULL, 10) : 0;
    a->part = chunked ? CHUNK_LINE : LENGTH;
    return chunked || a->left ? end + 4 - a->head - (ssize_t)before : -1;
}

/* A byte of the chunks' framing; returns true when it ended the trailer, and so the answer. */
static bool answer_framing(struct answer *a, char byte) {
    if (byte != '\n') {
        if (byte != '\r' && a->line_size < sizeof a->line - 1)
            a->line[a->line_size++] = byte;
        return false;
    }
    a->line[a->line_size] = 0;
    if (a->part == TRAILER && !a->line_size)
        return true;
    if (a->part == CHUNK_LINE)
        a->part = (a->left = strtoul(a->line, NULL, 16)) ? CHUNK_DATA : TRAILER;
    else if (a->part == CHUNK_END)
        a->part = CHUNK_LINE;
    a->line_size = 0;
    return false;
}

/* Returns 1 when the answer ended with these bytes, 0 when more is to come, -1 when it is malformed. */
static int answer_take(struct answer *a, const char *bytes, size_t size) {
    ssize_t head = a->part == HEAD ? answer_head(a, bytes, size) : 0;
    if (head < 0)
        return -1;
    for (size_t at = (size_t)head; at < size;) {
        if (a->part != LENGTH && a->part != CHUNK_DATA) {
            if (answer_framing(a, bytes[at++]))
                return at == size ? 1 : -1;
            continue;
        }
        size_t piece = size - at < a->left ? size - at : a->left;
        at += piece;
        a->left -= piece;
        a->body_bytes += piece;
        if (!a->left && a->part == LENGTH)
            return at == size ? 1 : -1;
        if (!a->left)
            a->part = CHUNK_END;
    }
    return 0;
}
