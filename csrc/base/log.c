// SPDX-License-Identifier: BSD-3-Clause
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static struct {
    cg_log_sink sink;
    void *context;
    enum cg_log_level lowest;
} log_target;

void cg_log_set_sink(cg_log_sink sink, void *context, enum cg_log_level lowest) {
    log_target.sink = sink;
    log_target.context = context;
    log_target.lowest = lowest;
}

void cg_log(enum cg_log_level level, const char *format, ...) {
    if (log_target.sink == NULL || level < log_target.lowest) {
        return;
    }
    char line[CG_LOG_LINE_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    // One call is one line: text from the network must not forge another.
    for (char *c = line; *c != '\0'; c++) {
        if ((unsigned char)*c < ' ' || *c == 0x7f) {
            *c = ' ';
        }
    }
    log_target.sink(log_target.context, level, line);
}
