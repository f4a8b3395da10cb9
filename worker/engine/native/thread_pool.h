/* The threads of a step, and the points at which they meet.

A step is one call for all threads: each takes pieces of a stage's work until there are none, and meets the others
before the next stage. Who waits spins for some microseconds, in which the others usually come, and then sleeps: on a
machine with other busy processes a thread may have lost its core for much longer. */
#pragma once

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { MAX_THREADS = 64, SPINS = 2000 };

typedef void Work(void *arg, int thread);

/* Where a thread waits for work. */
typedef struct {
  _Alignas(64) atomic_int calls;
  atomic_int sleeping;
} Seat;

static struct {
  _Alignas(64) atomic_int phase; /* rises when all have met */
  atomic_int sleeping;
  _Alignas(64) atomic_int arrived;
  int threads; /* of the present work */
  int started; /* all that there are, the caller's included */
  Work *work;
  void *arg;
  pthread_mutex_t mutex; /* one work at a time */
  Seat seats[MAX_THREADS];
} team = {.started = 1, .threads = 1, .mutex = PTHREAD_MUTEX_INITIALIZER};

INLINE void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/* Wait until *word is no longer `old`. */
static void await(atomic_int *word, int old, atomic_int *sleepers) {
  for (int i = 0; i < SPINS; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != old) return;
    relax();
  }
  atomic_fetch_add(sleepers, 1);
  while (atomic_load(word) == old) {
#ifdef __linux__
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
#else
    sched_yield();
#endif
  }
  atomic_fetch_sub(sleepers, 1);
}

static void announce(atomic_int *word, atomic_int *sleepers) {
  atomic_fetch_add(word, 1);
#ifdef __linux__
  if (atomic_load(sleepers)) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
#else
  (void)sleepers;
#endif
}

/* Every thread of the work calls this; none goes on before all have. */
static void meet(void) {
  if (team.threads == 1) return;
  int phase = atomic_load(&team.phase);
  if (atomic_fetch_add(&team.arrived, 1) == team.threads - 1) {
    atomic_store(&team.arrived, 0);
    announce(&team.phase, &team.sleeping);
  } else {
    await(&team.phase, phase, &team.sleeping);
  }
}

static void *take_seat(void *arg) {
  int thread = (int)(intptr_t)arg;
  Seat *seat = &team.seats[thread];
  for (int calls = 0;; calls++) {
    await(&seat->calls, calls, &seat->sleeping);
    team.work(team.arg, thread);
    meet();
  }
  return NULL;
}

/* A process that was forked has none of its parent's threads. */
static void lose_threads(void) {
  team.started = 1;
  memset(team.seats, 0, sizeof(team.seats));
}

/* Do a work with so many threads, the caller's among them; fewer where the system refuses. */
static void work_together(int threads, Work *work, void *arg) {
  pthread_mutex_lock(&team.mutex);
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  static int watched;
  if (!watched) watched = !pthread_atfork(NULL, NULL, lose_threads);
  while (team.started < threads) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, take_seat, (void *)(intptr_t)team.started)) break;
    pthread_detach(thread);
    team.started++;
  }
  team.threads = threads < team.started ? threads : team.started;
  team.work = work;
  team.arg = arg;
  for (int i = 1; i < team.threads; i++) announce(&team.seats[i].calls, &team.seats[i].sleeping);
  work(arg, 0);
  meet();
  pthread_mutex_unlock(&team.mutex);
}
