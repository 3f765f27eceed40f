#define _GNU_SOURCE
#include "load.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// Seconds that all threads of a process have run, to the nanosecond.
static double run_time(int process) {
    char path[300];
    snprintf(path, sizeof path, "/proc/%d/task", process);
    DIR *tasks = opendir(path);
    if (!tasks) return 0;
    double total = 0;
    for (struct dirent *entry; (entry = readdir(tasks));) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/schedstat", process, entry->d_name);
        FILE *file = fopen(path, "r");
        unsigned long long nanoseconds;
        if (!file) continue;
        if (fscanf(file, "%llu", &nanoseconds) == 1) total += (double)nanoseconds * 1e-9;
        fclose(file);
    }
    closedir(tasks);
    return total;
}

static void read_machine(struct account *account) {
    FILE *file = fopen("/proc/stat", "r");
    unsigned long long user, nice, system, idle, wait, irq, softirq, stolen;
    if (!file) return;
    if (fscanf(file, "cpu %llu %llu %llu %llu %llu %llu %llu %llu",
               &user, &nice, &system, &idle, &wait, &irq, &softirq, &stolen) == 8) {
        double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);
        account->busy = (double)(user + nice + system + irq + softirq) * tick;
        account->softirq = (double)softirq * tick;
        account->stolen = (double)stolen * tick;
    }
    fclose(file);
}

static uint64_t read_packets(const char *interface) {
    FILE *file = fopen("/proc/self/net/dev", "r");
    char line[512];
    uint64_t total = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        unsigned long long in, out;
        if (!colon) continue;
        *colon = 0;
        if (strcmp(line + strspn(line, " "), interface)) continue;
        if (sscanf(colon + 1, "%*u %llu %*u %*u %*u %*u %*u %*u %*u %llu", &in, &out) == 2) total = in + out;
    }
    fclose(file);
    return total;
}

struct account take_account(const struct options *options) {
    struct account account = {.time = now()};
    struct timespec own;
    read_machine(&account);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own);
    account.own = own.tv_sec + own.tv_nsec * 1e-9;
    for (int i = 0; i < options->watched_count; i++) account.watched += run_time(options->watched[i]);
    if (options->interface) account.packets = read_packets(options->interface);
    return account;
}

void print_account(const struct account *begin, const struct account *end) {
    printf("\"elapsed\": %.6f, \"busy\": %.3f, \"softirq\": %.3f, \"stolen\": %.3f, \"own\": %.6f, \"watched\": %.6f, "
           "\"packets\": %llu",
           end->time - begin->time, end->busy - begin->busy, end->softirq - begin->softirq, end->stolen - begin->stolen,
           end->own - begin->own, end->watched - begin->watched, (unsigned long long)(end->packets - begin->packets));
}

enum { MOST_SAMPLES = 4000000 };

void add_sample(struct samples *samples, double value) {
    if (!samples->values && !(samples->values = malloc(MOST_SAMPLES * sizeof(double)))) fail("memory for samples");
    if (samples->count < MOST_SAMPLES) samples->values[samples->count++] = value;
}

static int in_order(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

void print_samples(struct samples *samples) {
    size_t count = samples->count;
    if (count == 0) {
        printf("\"samples\": 0");
        return;
    }
    qsort(samples->values, count, sizeof(double), in_order);
    printf("\"samples\": %zu, \"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f", count, samples->values[count / 2] * 1e6,
           samples->values[count * 99 / 100] * 1e6, samples->values[count - 1] * 1e6);
}
