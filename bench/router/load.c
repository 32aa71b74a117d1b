/* Sends one request again and again and measures the answers: one thread, epoll, HTTP/1.1 keep-alive, closed loop.
 *
 *     load PORT CONNECTIONS SECONDS < REQUEST     ask for SECONDS; an answer under way at the end is awaited
 *     load PORT CONNECTIONS 0 < REQUEST           each connection asks once; all stay open until the last has ended
 *
 * REQUEST is the request as it goes over the wire. Prints one JSON object: counts, and times in microseconds from the
 * request's first byte to the answer's first body byte and to its end, and the longest silence between two pieces of an
 * answer. With SECONDS 0 a line {"open": N} is printed first, when the last connection has begun to receive.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "answer.h"

#define REQUEST_BYTES (4 << 20)
#define EVENTS 512
#define OPENED_PER_S 2000                   /* streams begun per second, so that no accept queue overflows */
#define ERRORS_LIMIT 1000
#define PATIENCE_NS 30000000000u            /* without any event */

struct connection {
    int fd;                                 /* -1 while there is none */
    bool asking;                            /* an answer is awaited or under way */
    bool head_seen;
    size_t sent;
    struct answer answer;
    uint64_t started_ns, first_ns, last_ns, silence_ns;
};

struct series { double *values; size_t count, room; };

static char request[REQUEST_BYTES];
static size_t request_size;
static int epoll_fd, port;
static bool once;
static uint64_t end_ns;
static size_t active, opening, answers, errors, bad_status, reads, body_bytes;
static struct series durations, first_bytes, silences;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note(struct series *series, uint64_t ns) {
    if (series->count == series->room) {
        series->room = series->room ? 2 * series->room : 1 << 16;
        series->values = realloc(series->values, series->room * sizeof *series->values);
    }
    series->values[series->count++] = (double)ns / 1e3;
}

static int ascending(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void print_series(const char *name, struct series *series) {
    double none = 0, *v = series->count ? series->values : &none;
    double last = series->count ? (double)series->count - 1 : 0;
    qsort(v, series->count, sizeof *v, ascending);
    printf(", \"%s_p50_us\": %.1f, \"%s_p99_us\": %.1f, \"%s_max_us\": %.1f", name, v[(size_t)(0.5 * last)], name,
           v[(size_t)(0.99 * last)], name, v[(size_t)last]);
}

static void watch(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static bool connect_to(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0)
        return false;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
    return connect(c->fd, (struct sockaddr *)&address, sizeof address) == 0;
}

/* Write what fits, and wait for room only while something is left. */
static bool send_rest(struct connection *c) {
    bool waited = c->sent > 0;
    while (c->sent < request_size) {
        ssize_t size = send(c->fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (size < 0 && errno != EAGAIN)
            return false;
        if (size < 0) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return true;
        }
        c->sent += (size_t)size;
    }
    if (waited)
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    return true;
}

static void hang_up(struct connection *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* Ask, on a new connection if need be. One that cannot be asked is an error, and rests from then on. */
static void ask(struct connection *c) {
    answer_begin(&c->answer);
    c->sent = 0;
    c->head_seen = false;
    c->first_ns = c->silence_ns = 0;
    c->started_ns = now_ns();
    c->asking = (c->fd >= 0 || connect_to(c)) && send_rest(c);
    if (!c->asking) {
        errors++;
        hang_up(c);
        return;
    }
    active++;
    opening++;
}

/* An answer ended, well or not: go on. In a run of streams its connection stays, so that memory is that of all. */
static void settle(struct connection *c, bool well) {
    uint64_t now = now_ns();
    c->asking = false;
    active--;
    opening -= !c->head_seen;
    if (well) {
        answers++;
        bad_status += c->answer.bad;
        body_bytes += c->answer.body_bytes;
        note(&durations, now - c->started_ns);
        note(&first_bytes, c->first_ns - c->started_ns);
        note(&silences, c->silence_ns);
    }
    errors += !well;
    if (!well || c->answer.closes)
        hang_up(c);
    if (!once && now < end_ns && errors < ERRORS_LIMIT)
        ask(c);
}

/* Returns 1 when the answer ended, 0 when more is to come, -1 when it is malformed. */
static int take(struct connection *c, const char *bytes, size_t size) {
    int state = answer_take(&c->answer, bytes, size);
    if (!c->head_seen) {
        c->head_seen = true;
        opening--;
    }
    if (c->answer.body_bytes) {
        uint64_t now = now_ns();
        if (!c->first_ns)
            c->first_ns = now;
        else if (now - c->last_ns > c->silence_ns)
            c->silence_ns = now - c->last_ns;
        c->last_ns = now;
    }
    return state;
}

static void handle(struct connection *c, uint32_t events) {
    static char buffer[1 << 17];
    if (events & EPOLLOUT && c->asking && !send_rest(c)) {
        settle(c, false);
        return;
    }
    ssize_t size = c->fd < 0 ? 0 : recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN)
        return;
    if (!c->asking) { /* closed while idle; the next question opens another */
        hang_up(c);
        return;
    }
    reads += size > 0;
    int state = size > 0 ? take(c, buffer, (size_t)size) : -1;
    if (state)
        settle(c, state > 0);
}

int main(int count, char **words) {
    if (count != 4 || !(request_size = fread(request, 1, REQUEST_BYTES, stdin))) {
        fprintf(stderr, "usage: load PORT CONNECTIONS SECONDS < REQUEST\n");
        return 2;
    }
    size_t connections = strtoul(words[2], NULL, 10), asked = 0;
    double seconds = strtod(words[3], NULL);
    struct connection *all = calloc(connections, sizeof *all);
    uint64_t begin_ns = now_ns();
    signal(SIGPIPE, SIG_IGN);
    port = atoi(words[1]);
    once = seconds == 0;
    end_ns = begin_ns + (uint64_t)(seconds * 1e9);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    bool announced = !once;
    int ready = 1;
    while (asked < connections || (active && ready > 0)) {
        while (asked < connections && (!once || asked < (now_ns() - begin_ns) / (1000000000u / OPENED_PER_S))) {
            all[asked].fd = -1;
            ask(&all[asked++]);
        }
        if (!announced && asked == connections && !opening) {
            announced = true;
            printf("{\"open\": %zu}\n", active);
            fflush(stdout);
        }
        struct epoll_event events[EVENTS];
        ready = epoll_wait(epoll_fd, events, EVENTS, asked < connections || !active ? 1 : PATIENCE_NS / 1000000u);
        for (int i = 0; active && i < ready; i++)
            handle(events[i].data.ptr, events[i].events);
    }
    printf("{\"requests\": %zu, \"seconds\": %.3f, \"errors\": %zu, \"bad_status\": %zu, \"unfinished\": %zu, "
           "\"reads\": %zu, \"body_bytes\": %zu", answers, (double)(now_ns() - begin_ns) / 1e9, errors, bad_status,
           active, reads, body_bytes);
    print_series("duration", &durations);
    print_series("first_byte", &first_bytes);
    print_series("silence", &silences);
    printf("}\n");
    return 0;
}
