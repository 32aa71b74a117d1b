/* An OpenAI-style server that costs almost nothing: one thread, epoll, HTTP/1.1 keep-alive, answers made beforehand.
 *
 *     backend PORT
 *
 * POST, "stream" not true: one completion of about 600 bytes. POST, "stream": true: an SSE stream of "max_tokens" chunks,
 * "seed" microseconds apart, in chunked coding. GET: what routers ask for before they trust a server (health, models, …).
 *
 * Kept simple on purpose: a request's head and the fields above stand in its first 8 KB; the next request is sent only
 * after the answer; request bodies have a Content-Length. Whoever does otherwise is dropped, and the load generator
 * counts an error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define KEPT_BYTES 8192
#define EVENTS 512

struct client {
    int fd;
    size_t received;              /* bytes of the request under way */
    size_t expected;              /* its whole size; 0 while the head is not complete */
    size_t head_size;
    size_t kept;
    char text[KEPT_BYTES];        /* its first bytes */
    bool streaming;
    long chunks_left;
    uint64_t interval_ns;
    uint64_t due_ns;
    TAILQ_ENTRY(client) waiting;
};

static TAILQ_HEAD(queue, client) queue = TAILQ_HEAD_INITIALIZER(queue); /* streams, the next due first */
static int epoll_fd;
static char completion[2048], sse_chunk[512];
static size_t completion_size, sse_chunk_size;

static const char SSE_HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                               "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char SSE_END[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
static const char SSE_EVENT[] = "data: {\"id\":\"chatcmpl-5f1e0a7cb2d94\",\"object\":\"chat.completion.chunk\","
    "\"created\":1760000000,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},"
    "\"logprobs\":null,\"finish_reason\":null}]}\n\n";
static const char COMPLETION[] = "{\"id\":\"chatcmpl-5f1e0a7cb2d94\",\"object\":\"chat.completion\",\"created\":1760000000,"
    "\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
    "\"logprobs\":null,\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":64,\"total_tokens\":264}}";
static const char SENTENCE[] = "A mutex has one owner, a semaphore counts. ";
static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1760000000,"
    "\"owned_by\":\"bench\",\"root\":\"m\",\"max_model_len\":131072}]}";
static const char INFO[] = "{\"status\":\"ok\",\"model_path\":\"m\",\"model_id\":\"m\",\"served_model_name\":\"m\","
    "\"tokenizer_path\":\"m\",\"is_generation\":true,\"tp_size\":1,\"dp_size\":1,\"version\":\"0.5.0\","
    "\"max_total_num_tokens\":100000,\"max_running_requests\":256}";

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void forget(struct client *c) {
    if (c->streaming)
        TAILQ_REMOVE(&queue, c, waiting);
    close(c->fd);
    free(c);
}

/* Every answer fits a socket's buffer: what cannot be written at once is a reader that stopped. */
static bool put(struct client *c, const char *bytes, size_t size) {
    return send(c->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size;
}

static bool put_json(struct client *c, const char *body) {
    char answer[1024];
    int size = snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                        "content-length: %zu\r\n\r\n%s", strlen(body), body);
    return put(c, answer, (size_t)size);
}

/* The text behind `"name":`, or NULL. */
static const char *field(const struct client *c, const char *name) {
    const char *body = c->text + c->head_size;
    const char *found = memmem(body, c->kept - c->head_size, name, strlen(name));
    if (!found)
        return NULL;
    found += strlen(name);
    return found + strspn(found, ": ");
}

static void enqueue(struct client *c, uint64_t due_ns) {
    struct client *before;
    c->due_ns = due_ns;
    TAILQ_FOREACH_REVERSE(before, &queue, queue, waiting)
        if (before->due_ns <= due_ns) { /* at once, while all streams have the same interval */
            TAILQ_INSERT_AFTER(&queue, before, c, waiting);
            return;
        }
    TAILQ_INSERT_HEAD(&queue, c, waiting);
}

/* The request is whole. Returns false when the client must go. */
static bool answer(struct client *c) {
    if (strncmp(c->text, "POST ", 5) != 0)
        return put_json(c, memmem(c->text, 64, "models", 6) ? MODELS : INFO);
    const char *stream = field(c, "\"stream\""), *count = field(c, "\"max_tokens\""), *pause = field(c, "\"seed\"");
    if (!stream || strncmp(stream, "true", 4) != 0)
        return put(c, completion, completion_size);
    if (!count)
        count = field(c, "\"max_completion_tokens\""); /* what sglang-router makes of it */
    c->chunks_left = count ? strtol(count, NULL, 10) : 1;
    c->interval_ns = pause ? strtoull(pause, NULL, 10) * 1000 : 0;
    c->streaming = true;
    enqueue(c, now_ns() + c->interval_ns);
    return put(c, SSE_HEAD, sizeof SSE_HEAD - 1);
}

static bool read_head(struct client *c) {
    char *end = memmem(c->text, c->kept, "\r\n\r\n", 4);
    if (!end)
        return c->kept < KEPT_BYTES - 1;
    end[2] = 0; /* the search below ends here */
    const char *length = strcasestr(c->text, "\r\ncontent-length:");
    if (!length && strncmp(c->text, "POST ", 5) == 0)
        return false;
    c->head_size = (size_t)(end + 4 - c->text);
    c->expected = c->head_size + (length ? strtoul(length + 17, NULL, 10) : 0);
    return true;
}

/* Returns false when the client must go. */
static bool receive(struct client *c) {
    static char buffer[1 << 18];
    ssize_t size = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return true;
    if (size <= 0 || c->streaming)
        return false;
    size_t room = KEPT_BYTES - 1 - c->kept, kept = (size_t)size < room ? (size_t)size : room;
    memcpy(c->text + c->kept, buffer, kept);
    c->kept += kept;
    c->text[c->kept] = 0;
    c->received += (size_t)size;
    if (!c->expected && !read_head(c))
        return false;
    if (!c->expected || c->received < c->expected)
        return true;
    if (c->received > c->expected || !answer(c))
        return false;
    c->received = c->expected = c->kept = 0;
    return true;
}

static void send_due_chunks(void) {
    uint64_t now = now_ns();
    struct client *c;
    while ((c = TAILQ_FIRST(&queue)) && c->due_ns <= now) {
        if (!put(c, sse_chunk, sse_chunk_size)) {
            forget(c);
            continue;
        }
        TAILQ_REMOVE(&queue, c, waiting);
        c->streaming = --c->chunks_left > 0;
        if (c->streaming)
            enqueue(c, now + c->interval_ns);
        else if (!put(c, SSE_END, sizeof SSE_END - 1))
            forget(c);
    }
}

static void watch(int fd, void *who) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = who};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

static void accept_all(int listening) {
    int fd, on = 1;
    while ((fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct client *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(fd, c);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("backend: listen");
        exit(1);
    }
    return fd;
}

static void make_answers(void) {
    char content[512] = "", body[1024];
    for (int i = 0; i < 7; i++)
        strcat(content, SENTENCE);
    int size = snprintf(body, sizeof body, COMPLETION, content);
    completion_size = (size_t)snprintf(completion, sizeof completion, "HTTP/1.1 200 OK\r\ncontent-type: application/json"
                                       "\r\ncontent-length: %d\r\n\r\n%s", size, body);
    sse_chunk_size = (size_t)snprintf(sse_chunk, sizeof sse_chunk, "%zx\r\n%s\r\n", sizeof SSE_EVENT - 1, SSE_EVENT);
}

int main(int count, char **words) {
    if (count != 2) {
        fprintf(stderr, "usage: backend PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    make_answers();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listening = listen_on(atoi(words[1]));
    watch(listening, NULL);
    for (;;) {
        struct epoll_event events[EVENTS];
        struct client *first = TAILQ_FIRST(&queue);
        struct timespec pause = {0};
        uint64_t now = first ? now_ns() : 0;
        if (first && first->due_ns > now) {
            pause.tv_sec = (time_t)((first->due_ns - now) / 1000000000u);
            pause.tv_nsec = (long)((first->due_ns - now) % 1000000000u);
        }
        int ready = epoll_pwait2(epoll_fd, events, EVENTS, first ? &pause : NULL, NULL);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (!c)
                accept_all(listening);
            else if (!receive(c))
                forget(c);
        }
        send_due_chunks();
    }
}
