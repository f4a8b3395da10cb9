/* The thread pool, and its barrier.

`pool_run` calls one function on several threads at once. A step of the model is one such call: the threads take pieces
of a stage's work until none is left, and wait at a barrier before the next stage. A waiting thread first spins for some
microseconds, because the others usually arrive within that time. Then it sleeps: on a machine with other busy processes
a thread may have lost its core for much longer. */
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

#include "vector.h"

enum { MAX_THREADS = 64, SPINS = 2000 };

typedef void PoolFunction(void *arg, int thread);

/* A thread of the pool waits on its own one of these between two runs. */
typedef struct {
  _Alignas(64) atomic_int runs; /* number of runs that the thread was asked to take part in */
  atomic_int sleeping;
} PoolThread;

static struct {
  _Alignas(64) atomic_int phase; /* incremented when all threads have reached the barrier */
  atomic_int sleeping;
  _Alignas(64) atomic_int arrived;
  int threads; /* of the current run, the caller included */
  int started; /* threads that exist, the caller included */
  PoolFunction *function;
  void *arg;
  pthread_mutex_t mutex; /* one run at a time */
  PoolThread thread[MAX_THREADS];
} pool = {.started = 1, .threads = 1, .mutex = PTHREAD_MUTEX_INITIALIZER};

INLINE void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/* Wait until *word is no longer `old`. */
static void wait_for_change(atomic_int *word, int old, atomic_int *sleepers) {
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

/* Increment *word and wake the threads that sleep until it changes. */
static void change_and_wake(atomic_int *word, atomic_int *sleepers) {
  atomic_fetch_add(word, 1);
#ifdef __linux__
  if (atomic_load(sleepers)) syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
#else
  (void)sleepers;
#endif
}

/* Wait until every thread of the run has called this. */
static void pool_barrier(void) {
  if (pool.threads == 1) return;
  int phase = atomic_load(&pool.phase);
  if (atomic_fetch_add(&pool.arrived, 1) == pool.threads - 1) {
    atomic_store(&pool.arrived, 0);
    change_and_wake(&pool.phase, &pool.sleeping);
  } else {
    wait_for_change(&pool.phase, phase, &pool.sleeping);
  }
}

static void *pool_thread_main(void *arg) {
  int thread = (int)(intptr_t)arg;
  PoolThread *self = &pool.thread[thread];
  for (int runs = 0;; runs++) {
    wait_for_change(&self->runs, runs, &self->sleeping);
    pool.function(pool.arg, thread);
    pool_barrier();
  }
  return NULL;
}

/* A forked process has none of its parent's threads. */
static void reset_after_fork(void) {
  pool.started = 1;
  memset(pool.thread, 0, sizeof(pool.thread));
}

/* Call a function on `threads` threads, and return when all calls have returned. The calling thread is number 0. There
are fewer threads if the system refuses to start them. */
static void pool_run(int threads, PoolFunction *function, void *arg) {
  pthread_mutex_lock(&pool.mutex);
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  static int handles_fork;
  if (!handles_fork) handles_fork = !pthread_atfork(NULL, NULL, reset_after_fork);
  while (pool.started < threads) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, pool_thread_main, (void *)(intptr_t)pool.started)) break;
    pthread_detach(thread);
    pool.started++;
  }
  pool.threads = threads < pool.started ? threads : pool.started;
  pool.function = function;
  pool.arg = arg;
  for (int i = 1; i < pool.threads; i++) change_and_wake(&pool.thread[i].runs, &pool.thread[i].sleeping);
  function(arg, 0);
  pool_barrier();
  pthread_mutex_unlock(&pool.mutex);
}
