/* SPDX-License-Identifier: MIT
 *
 * sim_line.c -- what is under way between the machines of the simulated link; rules in sim_net.h.
 */
#include "io/sim_net.h"

#include <stdlib.h>

#include "base/crc.h"

#define RETRY_NS     (200 * NS_PER_MS)
#define RETRY_NS_MAX (120 * NS_PER_S)
#define RETRIES      15u

struct sim_cut {
    struct list link; /* sim.cuts */
    struct sim_node *a, *b;
    bool one_way; /* from a to b only */
    u64 slow_ns;  /* not 0: not cut, but slow */
};

/* ---- links ---- */

bool
sim_link_is_cut(const struct sim *sim, const struct sim_node *a, const struct sim_node *b)
{
    list_for_each (pos, &sim->cuts) {
        const struct sim_cut *cut = list_entry(pos, struct sim_cut, link);
        if (cut->slow_ns != 0) continue;
        if (cut->a == a && cut->b == b) return true;
        if (cut->a == b && cut->b == a && !cut->one_way) return true;
    }
    return false;
}

static bool
cut_is_between(const struct sim_cut *cut, const struct sim_node *a, const struct sim_node *b)
{
    return (cut->a == a && cut->b == b) || (cut->a == b && cut->b == a);
}

static u64
link_slow_ns(const struct sim *sim, const struct sim_node *a, const struct sim_node *b)
{
    list_for_each (pos, &sim->cuts) {
        const struct sim_cut *cut = list_entry(pos, struct sim_cut, link);
        if (cut->slow_ns != 0 && cut_is_between(cut, a, b)) return cut->slow_ns;
    }
    return 0;
}

u64
sim_net_delay_ns(struct sim *sim)
{
    return sim_draw(&sim->prng_net, sim->options.net.latency_ns_min,
                    sim->options.net.latency_ns_max);
}

/* ---- segments ---- */

void
sim_segment_free(struct pipe *pipe, struct segment *segment)
{
    list_del(&segment->link);
    pipe->used_bytes -= segment->size - segment->taken;
    free(segment);
}

void
sim_segments_free(struct pipe *pipe, struct list *segments)
{
    while (!list_empty(segments))
        sim_segment_free(pipe, list_entry(list_first(segments), struct segment, link));
}

void
sim_line_check(struct sim *sim, struct line *line)
{
    if (line->ends[0] != NULL || line->ends[1] != NULL) return;
    if (line->pending[0] || line->pending[1]) return;
    for (u32 i = 0; i < 2; i++) {
        sim_segments_free(&line->pipes[i], &line->pipes[i].under_way);
        sim_segments_free(&line->pipes[i], &line->pipes[i].arrived);
        sim_event_cancel(sim, &line->pipes[i].event);
    }
    list_del(&line->link);
    free(line);
}

static void
pipe_schedule(struct sim *sim, struct pipe *pipe)
{
    if (pipe->event.scheduled || list_empty(&pipe->under_way)) return;
    const struct segment *segment = list_entry(list_first(&pipe->under_way), struct segment, link);
    sim_event_schedule(sim, &pipe->event, segment->time_ns);
}

/* For how long the direction carries nothing before the next segment. */
static u64
pipe_stall_ns(struct sim *sim, const struct pipe *pipe)
{
    if (!sim_fault_chance(sim, SIM_FAULT_NET_STALL, sim->options.net.stall_ppm)) return 0;
    struct prng prng = sim_fault_prng(sim, SIM_FAULT_NET_STALL);
    u64 ns = sim_draw(&prng, NS_PER_MS, sim->options.net.stall_ns_max);
    const struct line *line = pipe->line;
    bool stalls =
        sim_fault_take(sim, SIM_FAULT_NET_STALL, "line %llu, %s to %s, %llu ms",
                       (unsigned long long)line->number, line->nodes[pipe->from]->host,
                       line->nodes[1 - pipe->from]->host, (unsigned long long)(ns / NS_PER_MS));
    return stalls ? ns : 0;
}

u8 *
sim_pipe_push(struct sim *sim, struct pipe *pipe, enum segment_kind kind, u32 size)
{
    struct segment *segment = malloc(sizeof(*segment) + size);
    CHECK(segment != NULL);
    const struct line *line = pipe->line;
    u64 from_ns = sim->now_ns + link_slow_ns(sim, line->nodes[0], line->nodes[1]);
    pipe->time_ns = MAX(from_ns + sim_net_delay_ns(sim), pipe->time_ns + 1);
    if (kind == SEGMENT_DATA) pipe->time_ns += pipe_stall_ns(sim, pipe);
    segment->time_ns = pipe->time_ns;
    segment->kind = kind;
    segment->size = size;
    segment->taken = 0;
    list_push_back(&pipe->under_way, &segment->link);
    pipe->used_bytes += size;
    pipe_schedule(sim, pipe);
    return segment->data;
}

void
sim_pipe_lose_some(struct sim *sim, struct pipe *pipe)
{
    while (!list_empty(&pipe->under_way) && prng_chance(&sim->prng_net, 1, 2)) {
        struct segment *last = list_entry(pipe->under_way.prev, struct segment, link);
        if (last->kind != SEGMENT_DATA) return;
        sim_segment_free(pipe, last);
    }
    if (list_empty(&pipe->under_way)) sim_event_cancel(sim, &pipe->event);
}

void
sim_line_end(struct sim *sim, struct line *line, u32 from)
{
    struct pipe *pipe = &line->pipes[from];
    if (pipe->ended) return;
    pipe->ended = true;
    (void)sim_pipe_push(sim, pipe, SEGMENT_END, 0);
}

void
sim_line_reset(struct sim *sim, struct line *line, u32 from)
{
    struct pipe *pipe = &line->pipes[from];
    if (pipe->reset) return;
    sim_pipe_lose_some(sim, pipe);
    pipe->ended = pipe->reset = true;
    (void)sim_pipe_push(sim, pipe, SEGMENT_RESET, 0);
}

void
sim_line_give_up(struct sim *sim, struct line *line, u32 end)
{
    line->pending[end] = false;
    sim_segments_free(&line->pipes[1 - end], &line->pipes[1 - end].arrived);
    sim_line_reset(sim, line, end);
    sim_line_check(sim, line);
}

void
sim_line_end_fail(struct line *line, u32 end, status why)
{
    struct sim_conn *conn = line->ends[end];
    if (conn == NULL || list_linked(&conn->error.link)) return;
    conn->error_why = why;
    sim_conn_arrive(conn, &conn->error);
}

static const char *
segment_name(enum segment_kind kind)
{
    switch (kind) {
    case SEGMENT_DATA:
        return "data line,end,bytes";
    case SEGMENT_END:
        return "end line,end,bytes";
    case SEGMENT_RESET:
        return "reset line,end,bytes";
    }
    return "?";
}

/* The first segment is there. */
static void
segment_arrives(struct sim *sim, struct pipe *pipe)
{
    struct segment *segment = list_entry(list_first(&pipe->under_way), struct segment, link);
    struct line *line = pipe->line;
    u32 to = 1 - pipe->from;
    struct sim_conn *target = line->ends[to];
    sim_trace(sim, target != NULL ? sim_conn_shard(target) : NULL, SIM_KIND_NET,
              crc32c((u32)segment->kind, segment->data, segment->size), segment_name(segment->kind),
              line->number, pipe->from, segment->size);
    bool there = target != NULL && target->core.state != CONN_SHUT;
    if (there || line->pending[to]) {
        list_del(&segment->link);
        list_push_back(&pipe->arrived, &segment->link);
        if (segment->kind == SEGMENT_RESET) { /* what is sent from here on is for nobody */
            line->pipes[to].ended = line->pipes[to].reset = true;
            if (there) sim_conn_send_fail(target, ST_CLOSED);
        }
        if (there) sim_conn_arrive(target, &target->receive);
        return;
    }
    /* Nobody is there any more, but the machine is. */
    bool data = segment->kind == SEGMENT_DATA;
    sim_segment_free(pipe, segment);
    if (!data) return;
    sim_line_reset(sim, line, to);
    if (line->ends[pipe->from] != NULL)
        sim_conn_arrive(line->ends[pipe->from], &line->ends[pipe->from]->room);
}

/* ---- what cannot arrive is tried again ---- */

static bool
pipe_blocked(const struct sim *sim, const struct pipe *pipe)
{
    const struct sim_node *from = pipe->line->nodes[pipe->from];
    const struct sim_node *to = pipe->line->nodes[1 - pipe->from];
    return pipe->black || to->power_off || sim_link_is_cut(sim, from, to);
}

static void
pipe_retry(struct sim *sim, struct pipe *pipe)
{
    struct line *line = pipe->line;
    sim_trace(sim, NULL, SIM_KIND_NET, line->number, "lost line,end,retries", line->number,
              pipe->from, pipe->retries);
    bool alive = !line->nodes[pipe->from]->power_off;
    if (alive && pipe->retries <= RETRIES) {
        u64 wait_ns = MIN(RETRY_NS << pipe->retries, RETRY_NS_MAX);
        pipe->retries++;
        sim_event_schedule(sim, &pipe->event, sim->now_ns + wait_ns + sim_net_delay_ns(sim));
        return;
    }
    sim_segments_free(pipe, &pipe->under_way);
    pipe->ended = pipe->reset = true;
    if (alive) sim_line_end_fail(line, pipe->from, ST_TIMED_OUT);
}

static void
pipe_fires(struct sim_event *event)
{
    struct sim *sim = sim_current;
    struct pipe *pipe = CONTAINER_OF(event, struct pipe, event);
    if (pipe_blocked(sim, pipe)) {
        pipe_retry(sim, pipe);
        return;
    }
    pipe->retries = 0;
    segment_arrives(sim, pipe);
    pipe_schedule(sim, pipe);
}

/* ---- what has arrived ---- */

void
sim_pipe_roomy(struct pipe *pipe)
{
    struct sim_conn *sender = pipe->line->ends[pipe->from];
    if (sender != NULL && sender->core.output.sending > 0) sim_conn_arrive(sender, &sender->room);
}

u32
sim_pipe_take(struct pipe *pipe, u8 *target, u32 size)
{
    u32 done = 0;
    while (done < size && !list_empty(&pipe->arrived)) {
        struct segment *segment = list_entry(list_first(&pipe->arrived), struct segment, link);
        if (segment->kind != SEGMENT_DATA) break;
        u32 part = MIN(size - done, segment->size - segment->taken);
        memcpy(target + done, segment->data + segment->taken, part);
        segment->taken += part;
        pipe->used_bytes -= part;
        done += part;
        if (segment->taken == segment->size) sim_segment_free(pipe, segment);
    }
    sim_pipe_roomy(pipe);
    return done;
}

bool
sim_pipe_unread(const struct pipe *pipe)
{
    list_for_each (pos, &pipe->arrived) {
        if (list_entry(pos, struct segment, link)->kind == SEGMENT_DATA) return true;
    }
    return false;
}

struct line *
sim_line_new(struct sim *sim, struct sim_node *from, struct sim_node *to)
{
    struct line *line = calloc(1, sizeof(*line));
    CHECK(line != NULL);
    line->number = ++sim->line_last;
    line->nodes[0] = from;
    line->nodes[1] = to;
    line->pending[0] = line->pending[1] = true;
    for (u32 i = 0; i < 2; i++) {
        struct pipe *pipe = &line->pipes[i];
        pipe->line = line;
        pipe->from = i;
        pipe->event.kind = SIM_KIND_NET;
        pipe->event.fire = pipe_fires;
        pipe->event.to = line->nodes[1 - i];
        list_init(&pipe->under_way);
        list_init(&pipe->arrived);
    }
    list_push_back(&sim->lines, &line->link);
    return line;
}

/* ---- the world ---- */

void
sim_net_init(struct sim *sim)
{
    list_init(&sim->lines);
    list_init(&sim->cuts);
}

static void
cuts_free(struct sim *sim)
{
    while (!list_empty(&sim->cuts)) {
        struct sim_cut *cut = list_entry(list_first(&sim->cuts), struct sim_cut, link);
        list_del(&cut->link);
        free(cut);
    }
}

void
sim_net_free(struct sim *sim)
{
    while (!list_empty(&sim->lines)) {
        struct line *line = list_entry(list_first(&sim->lines), struct line, link);
        line->pending[0] = line->pending[1] = false;
        CHECK(line->ends[0] == NULL && line->ends[1] == NULL);
        sim_line_check(sim, line);
    }
    cuts_free(sim);
}

void
sim_lines_hurry(struct sim *sim, u64 latest_ns)
{
    cuts_free(sim);
    list_for_each (pos, &sim->lines) {
        struct line *line = list_entry(pos, struct line, link);
        for (u32 i = 0; i < 2; i++) {
            struct pipe *pipe = &line->pipes[i];
            pipe->black = false;
            pipe->retries = 0;
            list_for_each (at, &pipe->under_way) {
                struct segment *segment = list_entry(at, struct segment, link);
                segment->time_ns = MIN(segment->time_ns, latest_ns);
            }
            pipe->time_ns = MIN(pipe->time_ns, latest_ns);
            sim_event_cancel(sim, &pipe->event);
            pipe_schedule(sim, pipe);
        }
    }
}

static struct sim_cut *
cut_add(struct sim *sim, struct sim_node *a, struct sim_node *b)
{
    struct sim_cut *cut = calloc(1, sizeof(*cut));
    CHECK(cut != NULL);
    cut->a = a;
    cut->b = b;
    list_push_back(&sim->cuts, &cut->link);
    return cut;
}

void
sim_link_cut(struct sim *sim, struct sim_node *a, struct sim_node *b)
{
    if (sim_link_is_cut(sim, a, b) && sim_link_is_cut(sim, b, a)) return;
    (void)cut_add(sim, a, b);
}

void
sim_link_cut_one_way(struct sim *sim, struct sim_node *from, struct sim_node *to)
{
    if (sim_link_is_cut(sim, from, to)) return;
    cut_add(sim, from, to)->one_way = true;
}

static void
cuts_remove(struct sim *sim, const struct sim_node *a, const struct sim_node *b, bool slow)
{
    list_for_each_safe (pos, &sim->cuts) {
        struct sim_cut *cut = list_entry(pos, struct sim_cut, link);
        if ((cut->slow_ns != 0) != slow || !cut_is_between(cut, a, b)) continue;
        list_del(&cut->link);
        free(cut);
    }
}

void
sim_link_heal(struct sim *sim, struct sim_node *a, struct sim_node *b)
{
    cuts_remove(sim, a, b, false);
}

void
sim_link_slow_set(struct sim *sim, struct sim_node *a, struct sim_node *b, u64 ns)
{
    cuts_remove(sim, a, b, true);
    if (ns != 0) cut_add(sim, a, b)->slow_ns = ns;
}
