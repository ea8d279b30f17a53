// Tasks over threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace cexnn::cpu {

// Calls work(task, thread) for task = 0 .. n_tasks - 1, each once, on at most num_threads threads;
// one thread sees its tasks in ascending order. Which thread takes which task varies from run to
// run, so a task's result must not depend on it. The first exception is rethrown when all stop.
template <typename Work>
void parallel_for(std::int64_t n_tasks, int num_threads, const Work& work) {
  const int n = static_cast<int>(std::max<std::int64_t>(
      1, std::min<std::int64_t>(n_tasks, static_cast<std::int64_t>(num_threads))));
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto run = [&](int thread) {
    try {
      for (std::int64_t task = next++; task < n_tasks; task = next++) work(task, thread);
    } catch (...) {
      next = n_tasks;
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> helpers;
  helpers.reserve(static_cast<std::size_t>(n - 1));
  for (int thread = 1; thread < n; ++thread) {
    try {
      helpers.emplace_back(run, thread);
    } catch (const std::exception&) {
      break;  // no more threads, or memory for one, to be had: the others do the work
    }
  }
  run(0);
  for (std::thread& helper : helpers) helper.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace cexnn::cpu
